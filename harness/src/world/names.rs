//! Names of worlds, each given out once in the life of an etcd.

use std::collections::{HashMap, HashSet};

use tokio::sync::Mutex;

use super::WorldError;
use super::etcd::Etcd;
use super::key::{WORLD_PREFIX, base36, namespace_key, world_name};
use super::wire::{Compare, Operation, Txn};

/// A start of names is reserved here for ever, so that no other process, now or later, has the same.
const RESERVED: &str = "/laggard/names/";

/// How many names have the same start: four digits to the base 36.
const NAMES_OF_A_START: u32 = 36 * 36 * 36 * 36;

/// As many starts are there; a few clashes in a row mean that something else is wrong.
const TRIES: usize = 50;

/// Gives out names.
#[derive(Debug, Default)]
pub(super) struct Names {
    next: Mutex<Option<Start>>,
}

#[derive(Debug)]
struct Start {
    characters: String,
    number: u32,
}

impl Names {
    /// A name that no world of this etcd has had.
    pub(super) async fn next(&self, etcd: &Etcd) -> Result<String, WorldError> {
        let mut next = self.next.lock().await;
        let start = match next.take() {
            Some(start) if start.number < NAMES_OF_A_START => start,
            _ => Start { characters: reserve(etcd).await?, number: 0 },
        };
        let name = world_name(&start.characters, start.number);
        *next = Some(Start { number: start.number + 1, ..start });
        Ok(name)
    }
}

/// Names of worlds, a bit each where they were given out here: there is one for every run of an
/// exploration, for as long as it lasts. Other names take more.
#[derive(Debug, Default)]
pub(crate) struct NameSet {
    /// By the first four of the eight characters.
    starts: HashMap<String, Vec<u64>>,
    others: HashSet<String>,
}

impl NameSet {
    pub(crate) fn insert(&mut self, name: &str) {
        let Some((start, number)) = taken_apart(name) else {
            self.others.insert(name.to_owned());
            return;
        };
        let words = match self.starts.get_mut(start) {
            Some(words) => words,
            None => self.starts.entry(start.to_owned()).or_default(),
        };
        let word = number / 64;
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        words[word] |= 1 << (number % 64);
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        let Some((start, number)) = taken_apart(name) else { return self.others.contains(name) };
        let word = self.starts.get(start).and_then(|words| words.get(number / 64));
        word.is_some_and(|word| word & 1 << (number % 64) != 0)
    }
}

/// The start of a name and its number below 36⁴; `None` for what is no name of a world.
fn taken_apart(name: &str) -> Option<(&str, usize)> {
    let (start, number) = name.strip_prefix(WORLD_PREFIX)?.split_at_checked(4)?;
    let upper = number.bytes().any(|byte| byte.is_ascii_uppercase());
    let number = usize::from_str_radix(number, 36).ok()?;
    (!upper && name.len() == world_name(start, 0).len()).then_some((start, number))
}

async fn reserve(etcd: &Etcd) -> Result<String, WorldError> {
    for _ in 0..TRIES {
        let random = uuid::Uuid::new_v4().as_u128() >> 64;
        let characters = String::from_utf8_lossy(&base36(random).collect::<Vec<_>>()).into_owned();
        let key = format!("{RESERVED}{characters}");
        // Somebody may have named a namespace like that by hand.
        let first = namespace_key(&world_name(&characters, 0));
        let txn = Txn {
            compare: vec![Compare::absent(&key), Compare::absent(&first)],
            success: vec![Operation::put(key, "")],
        };
        if etcd.txn("reserve names of worlds", &txn).await?.succeeded {
            return Ok(characters);
        }
    }
    Err(WorldError::NoName { tries: TRIES })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_the_names_that_were_put_in_and_no_other() {
        let mut set = NameSet::default();
        let numbers = [0, 63, 64, 36 * 36, NAMES_OF_A_START - 1];
        numbers.iter().for_each(|&number| set.insert(&world_name("ab01", number)));
        for number in 0..NAMES_OF_A_START {
            let name = world_name("ab01", number);
            assert_eq!(set.contains(&name), numbers.contains(&number), "{name}");
        }
        assert!(!set.contains("lw-ab020000") && !set.contains("default"));
        set.insert("default");
        assert!(set.contains("default") && !set.contains("defaults"));
        // By hand, such as one that a test made up.
        set.insert("lw-zzzzzzzz");
        assert!(set.contains("lw-zzzzzzzz") && !set.contains("lw-zzzzzzzy"));
    }
}
