//! Names of parts: files that are not complete yet.
//!
//! `.NAME.RANDOM.part` in the directory of NAME. The random half makes sure that nobody else
//! writes there; the rest says for which target it was, so that the next copy to the same target
//! finds what an earlier one left.

use std::{
    ffi::{OsStr, OsString},
    hash::{BuildHasher, Hasher, RandomState},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

/// Longest name that a directory holds, in bytes (`NAME_MAX`, `linux/limits.h`).
const NAME_MAX: usize = 255;

/// `.` and 16 digits, then [`SUFFIX`].
const RANDOM_DIGITS: usize = 16;
const SUFFIX: &[u8] = b".part";

/// Longest beginning of a part's name, so that all of it fits.
const MAX_STEM_BYTES: usize = NAME_MAX - 1 - RANDOM_DIGITS - SUFFIX.len();

/// How the names of all parts of the target `name` begin.
pub(super) fn stem(name: &OsStr) -> Vec<u8> {
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

/// A name for a new part of the target `name`.
pub(super) fn name(name: &OsStr) -> OsString {
    let mut part = stem(name);
    let random = RandomState::new().build_hasher().finish();
    part.extend_from_slice(format!(".{random:016x}").as_bytes());
    part.extend_from_slice(SUFFIX);
    OsString::from_vec(part)
}

/// The stem, if this is the name of a part.
pub(super) fn stem_of(part: &[u8]) -> Option<&[u8]> {
    let rest = part.strip_suffix(SUFFIX)?;
    let (stem, random) = rest.split_at_checked(rest.len().checked_sub(1 + RANDOM_DIGITS)?)?;
    let digits = random.strip_prefix(b".")?;
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (stem.len() > 1 && stem[0] == b'.' && digits.iter().all(is_digit)).then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_known_for_its_target_however_long_the_name_is() {
        for length in [1, 200, 231, 232, 233, 234, 255] {
            let target = OsString::from_vec(vec![b'\xff'; length]);
            let part = name(&target);
            assert!(part.len() <= NAME_MAX, "{length}: {}", part.len());
            assert_eq!(stem_of(part.as_bytes()), Some(&stem(&target)[..]));
            assert_ne!(part, name(&target));
        }
        let [one, other] = [b'a', b'b'].map(|last| {
            let mut name = vec![b'x'; 254];
            name.push(last);
            stem(OsStr::from_bytes(&name))
        });
        assert_ne!(one, other);
    }

    #[test]
    fn other_names_are_no_parts() {
        for name in [
            "a.part",
            ".a.part",
            ".a.0123456789abcdeX.part",
            "a.0123456789abcdef.part",
            ".0123456789abcdef.part",
            "..0123456789abcdef.part",
            ".part",
            "",
        ] {
            assert_eq!(stem_of(name.as_bytes()), None, "{name}");
        }
    }
}
