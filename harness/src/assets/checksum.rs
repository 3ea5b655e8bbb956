//! Checksums as the release pages publish them.

use std::fmt;

use sha2::{Digest as _, Sha256, Sha512};

/// What a file has to come to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Checksum {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Checksum {
    /// Reads the digest in hexadecimal, perhaps followed by a file's name, as `sha512sum` writes it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = text.split_whitespace().next()?;
        let algorithm = match hex.len() {
            64 => Algorithm::Sha256,
            128 => Algorithm::Sha512,
            _ => return None,
        };
        let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| Self { algorithm, hex: hex.to_ascii_lowercase() })
    }

    pub(crate) fn hasher(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.algorithm {
            Algorithm::Sha256 => "SHA-256",
            Algorithm::Sha512 => "SHA-512",
        };
        // The beginning tells two of them apart as well as the whole.
        write!(f, "{name} {}…", &self.hex[..16])
    }
}

/// A digest that is being taken.
#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Checksum {
        match self {
            Self::Sha256(hasher) => {
                Checksum { algorithm: Algorithm::Sha256, hex: hexadecimal(&hasher.finalize()) }
            }
            Self::Sha512(hasher) => {
                Checksum { algorithm: Algorithm::Sha512, hex: hexadecimal(&hasher.finalize()) }
            }
        }
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf abc | sha512sum`, and the same with `sha256sum`.
    const SHA512: &str = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                          2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
    const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_published_checksum_is_what_the_content_comes_to() {
        for text in [SHA512, SHA256] {
            for form in [text.to_owned(), format!("{text}  etcd\n"), text.to_uppercase()] {
                let checksum = Checksum::parse(&form).unwrap();
                let mut hasher = checksum.hasher();
                hasher.update(b"a");
                hasher.update(b"bc");
                assert_eq!(hasher.finish(), checksum);
                assert_ne!(checksum.hasher().finish(), checksum);
            }
        }
    }

    #[test]
    fn what_is_no_checksum_is_refused() {
        for text in ["", "<html>", &SHA256[1..], &SHA512.replace('d', "g")] {
            assert_eq!(Checksum::parse(text), None, "{text}");
        }
    }
}
