//! Numbers of users and groups.

/// `(uid_t) -1` and `(gid_t) -1`: not a valid id; system calls take it for "unchanged" (`chown(2)`,
/// `setresuid(2)`). A command that is started as this user would run as root.
pub const UNCHANGED: u32 = u32::MAX;

/// Parses an id of a user or group, decimal digits alone. `None` for [`UNCHANGED`] and for other text.
#[must_use]
pub fn parse(text: &str) -> Option<u32> {
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let id = text.parse().ok().filter(|_| is_digits)?;
    (id != UNCHANGED).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_that_means_no_change_is_nobodys() {
        assert_eq!(parse("4294967294"), Some(UNCHANGED - 1));
        assert_eq!(parse("0"), Some(0));
        for text in ["4294967295", "4294967296", "-1", "+1", "", "root", " 1"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
