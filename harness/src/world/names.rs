//! Names of worlds, each given out once in the life of an etcd.

use tokio::sync::Mutex;

use super::WorldError;
use super::etcd::Etcd;
use super::key::{base36, namespace_key, world_name};
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
