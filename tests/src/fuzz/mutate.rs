//! Small random changes, the same for the same seed.

/// Longest input made, in bytes: longer ones find nothing that shorter ones do not.
const MAX_BYTES: usize = 8 * 1024;

/// Most changes made to one input.
const MAX_CHANGES: usize = 6;

/// Values that lengths, counts and types trip over.
const EDGES: [u8; 8] = [0x00, 0x01, 0x7e, 0x7f, 0x80, 0x81, 0xfe, 0xff];

/// Makes inputs out of a corpus.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
    corpus: Vec<Vec<u8>>,
}

impl Mutator {
    /// # Panics
    ///
    /// When the corpus is empty.
    #[must_use]
    pub fn new(seed: u64, corpus: Vec<Vec<u8>>) -> Self {
        assert!(!corpus.is_empty(), "nothing to change");
        // Xorshift stays at zero for ever.
        let state = (seed ^ 0x9e37_79b9_7f4a_7c15).max(1);
        Self { state, corpus }
    }

    /// One more input.
    pub fn make(&mut self) -> Vec<u8> {
        let mut data = self.pick().clone();
        for _ in 0..=self.below(MAX_CHANGES) {
            self.change(&mut data);
        }
        data.truncate(MAX_BYTES);
        data
    }

    fn change(&mut self, data: &mut Vec<u8>) {
        let at = self.below(data.len() + 1);
        let end = at + self.below(data.len() - at + 1).min(64);
        match self.below(8) {
            0 if at < data.len() => data[at] ^= 1 << self.below(8),
            1 if at < data.len() => data[at] = EDGES[self.below(EDGES.len())],
            2 if at < data.len() => data[at] = self.byte(),
            3 => data.truncate(at),
            4 => data.insert(at, self.byte()),
            5 => drop(data.drain(at..end)),
            6 => {
                let piece = data[at..end].to_vec();
                data.splice(at..at, piece);
            }
            _ => {
                let other = self.pick().clone();
                let from = self.below(other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
        }
    }

    fn pick(&mut self) -> &Vec<u8> {
        let number = self.below(self.corpus.len());
        &self.corpus[number]
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn below(&mut self, limit: usize) -> usize {
        let number = self.next() % u64::try_from(limit).unwrap();
        usize::try_from(number).unwrap()
    }

    /// Xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
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
