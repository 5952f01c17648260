//! Names of parts: files that are not complete yet.
//!
//! `.NAME.DIGITS.part` in the directory of NAME. The digits are always the same few, so that the next
//! copy to the same target finds what an earlier one left without listing the directory. The
//! names need not be free, and a file under one need not be a part: each is created with `O_EXCL`, and an
//! existing one is checked ([`super::local`], and `open-part@vsock-agent` in the guest).

use std::{
    ffi::{OsStr, OsString},
    hash::{BuildHasher, Hasher, RandomState},
    os::unix::ffi::{OsStrExt, OsStringExt},
    time::Duration,
};

/// Longest name that a directory holds, in bytes (`NAME_MAX`, `linux/limits.h`).
const NAME_MAX: usize = 255;

/// Digits of the names that are tried: the first that is free, or that an earlier copy left, is
/// taken. The others are for copies to one target at the same time.
const DIGITS: [u64; 4] = [
    0x0123_4567_89ab_cdef,
    0x0123_4567_89ab_cdee,
    0x0123_4567_89ab_cded,
    0x0123_4567_89ab_cdec,
];

/// How often, and after what time each, a part that is locked is looked at again: it may not have been
/// noticed yet that the copy before has ended, and what was on its way is still written.
pub(super) const BUSY_TRIES: u32 = 10;
pub(super) const BUSY_INTERVAL: Duration = Duration::from_millis(100);

/// `.` and 16 digits, then [`SUFFIX`].
const RANDOM_DIGITS: usize = 16;
const SUFFIX: &[u8] = b".part";

/// Longest beginning of a part's name, so that all of it fits.
const MAX_STEM_BYTES: usize = NAME_MAX - 1 - RANDOM_DIGITS - SUFFIX.len();

/// How the names of all parts of the target `name` begin.
fn stem(name: &OsStr) -> Vec<u8> {
    let name = name.as_bytes();
    let mut stem = b".".to_vec();
    if name.len() < MAX_STEM_BYTES {
        stem.extend_from_slice(name);
        return stem;
    }
    // Too long: its beginning, and a hash of all of it.
    let hash = blake3::hash(name).to_hex();
    let hash = &hash.as_bytes()[..RANDOM_DIGITS];
    stem.extend_from_slice(&name[..MAX_STEM_BYTES - 2 - hash.len()]);
    stem.push(b'~');
    stem.extend_from_slice(hash);
    stem
}

/// The first name that is tried for a part of the target `name`, a single component.
#[must_use]
pub fn part_name(name: &OsStr) -> OsString {
    with_digits(name, DIGITS[0])
}

/// All names that are tried, in order. The last one is random: it is free even if another user has
/// occupied all others.
pub(super) fn names(name: &OsStr) -> Vec<OsString> {
    let known = DIGITS.into_iter();
    let digits = known.chain([RandomState::new().build_hasher().finish()]);
    digits.map(|digits| with_digits(name, digits)).collect()
}

fn with_digits(name: &OsStr, digits: u64) -> OsString {
    let mut part = stem(name);
    part.extend_from_slice(format!(".{digits:016x}").as_bytes());
    part.extend_from_slice(SUFFIX);
    OsString::from_vec(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_however_long_the_target_is_and_all_differ() {
        for length in [1, 200, 231, 232, 233, 234, 255] {
            let target = OsString::from_vec(vec![b'\xff'; length]);
            let mut names = names(&target);
            assert_eq!(names[0], part_name(&target));
            assert!(names.iter().all(|name| name.len() <= NAME_MAX), "{length}");
            names.sort();
            names.dedup();
            assert_eq!(names.len(), DIGITS.len() + 1);
        }
        let [one, other] = [b'a', b'b'].map(|last| {
            let mut name = vec![b'x'; 254];
            name.push(last);
            part_name(OsStr::from_bytes(&name))
        });
        assert_ne!(one, other);
    }

    #[test]
    fn the_last_name_is_another_one_each_time() {
        let last = || names(OsStr::new("a")).pop();
        assert_ne!(last(), last());
    }
}
