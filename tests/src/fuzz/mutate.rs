//! Small random changes, the same for the same seed.

use crate::Random;

/// Longest input made, in bytes: longer ones find nothing that shorter ones do not.
const MAX_BYTES: usize = 8 * 1024;

/// Most changes made to one input.
const MAX_CHANGES: usize = 6;

/// Values that lengths, counts and types trip over.
const EDGES: [u8; 8] = [0x00, 0x01, 0x7e, 0x7f, 0x80, 0x81, 0xfe, 0xff];

/// Makes inputs out of a corpus.
#[derive(Debug)]
pub struct Mutator {
    random: Random,
    corpus: Vec<Vec<u8>>,
}

impl Mutator {
    /// # Panics
    ///
    /// When the corpus is empty.
    #[must_use]
    pub fn new(seed: u64, corpus: Vec<Vec<u8>>) -> Self {
        assert!(!corpus.is_empty(), "nothing to change");
        let random = Random::new(seed);
        Self { random, corpus }
    }

    /// One more input.
    pub fn make(&mut self) -> Vec<u8> {
        let mut data = self.pick().clone();
        for _ in 0..=self.random.below(MAX_CHANGES) {
            self.change(&mut data);
        }
        data.truncate(MAX_BYTES);
        data
    }

    fn change(&mut self, data: &mut Vec<u8>) {
        let at = self.random.below(data.len() + 1);
        let end = at + self.random.below(data.len() - at + 1).min(64);
        match self.random.below(8) {
            0 if at < data.len() => data[at] ^= 1 << self.random.below(8),
            1 if at < data.len() => data[at] = EDGES[self.random.below(EDGES.len())],
            2 if at < data.len() => data[at] = self.random.byte(),
            3 => data.truncate(at),
            4 => data.insert(at, self.random.byte()),
            5 => drop(data.drain(at..end)),
            6 => {
                let piece = data[at..end].to_vec();
                data.splice(at..at, piece);
            }
            _ => {
                let other = self.pick().clone();
                let from = self.random.below(other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
        }
    }

    fn pick(&mut self) -> &Vec<u8> {
        let number = self.random.below(self.corpus.len());
        &self.corpus[number]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let make = |seed| {
            let mut mutator = Mutator::new(seed, vec![b"one".to_vec(), Vec::new()]);
            (0..100).map(|_| mutator.make()).collect::<Vec<_>>()
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
    }
}
