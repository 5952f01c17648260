//! Random numbers that are the same for the same seed.

use std::time::SystemTime;

/// Xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers for this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Xorshift stays at zero for ever.
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).max(1))
    }

    /// A seed that nobody had before.
    #[must_use]
    pub fn fresh_seed() -> u64 {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        now.as_secs() ^ u64::from(now.subsec_nanos()) << 32
    }

    /// The next 56 bits.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    /// A number from 0 to `limit`, without that.
    ///
    /// # Panics
    ///
    /// When `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let number = self.number() % u64::try_from(limit).unwrap();
        usize::try_from(number).unwrap()
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }

    /// Whether something happens that does so many times in a hundred.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// One of them.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
