//! Memory: `/proc/meminfo`, and other files with lines `Name: 12 kB`.

/// Lines `Name: VALUE [kB]` (`proc_meminfo(5)`), in the kernel's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<Field>);

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    /// In bytes, or a count.
    pub(super) value: u64,
    pub(super) is_bytes: bool,
}

impl Fields {
    /// The value of a field, in bytes or a count; 0 if there is none.
    pub(super) fn get(&self, name: &str) -> u64 {
        let field = self.0.iter().find(|field| field.name == name);
        field.map_or(0, |field| field.value)
    }

    /// All fields, in the kernel's order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Field> {
        self.0.iter()
    }

    /// The value of `all` less that of `part`, or 0.
    pub(super) fn without(&self, all: &str, part: &str) -> u64 {
        self.get(all).saturating_sub(self.get(part))
    }
}

/// Parses the lines. Invalid ones are skipped.
pub(super) fn parse(text: &str) -> Fields {
    Fields(text.lines().filter_map(parse_line).collect())
}

fn parse_line(line: &str) -> Option<Field> {
    let (name, rest) = line.split_once(':')?;
    let mut words = rest.split_ascii_whitespace();
    let value: u64 = words.next()?.parse().ok()?;
    let (value, is_bytes) = match (words.next(), words.next()) {
        (None, _) => (value, false),
        (Some("kB"), None) => (value.checked_mul(1024)?, true),
        _ => return None,
    };
    Some(Field {
        name: name.trim().to_owned(),
        value,
        is_bytes,
    })
}

/// The number of processes killed by the OOM killer, from `/proc/vmstat`.
pub(super) fn parse_oom_kills(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let count = lines.find_map(|line| line.strip_prefix("oom_kill "))?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kilobytes_are_converted_to_bytes_and_counts_are_kept() {
        let fields = parse(
            "MemTotal:       16316412 kB\nActive(anon):      100 kB\nHugePages_Total:       3\n",
        );
        assert_eq!(fields.get("MemTotal"), 16_316_412 * 1024);
        assert_eq!(fields.get("Active(anon)"), 102_400);
        assert_eq!(fields.get("HugePages_Total"), 3);
        assert_eq!(fields.get("MemFree"), 0);
    }

    #[test]
    fn invalid_lines_of_meminfo_are_skipped() {
        let text = "\nMemTotal\nMemFree: x kB\nCached: -1 kB\nA: 1 MB\nB: 1 kB 2\n\
                    Name:\tvsock-agent\nC: 99999999999999999999 kB\nD: 18446744073709551615 kB\n";
        assert_eq!(parse(text), Fields::default());
    }

    #[test]
    fn a_difference_of_fields_is_not_negative() {
        let fields = parse("A: 1 kB\nB: 2 kB\n");
        assert_eq!(fields.without("A", "B"), 0);
    }

    #[test]
    fn oom_kills_are_found_by_the_whole_name() {
        assert_eq!(parse_oom_kills("oom_kill_x 1\noom_kill 7\n"), Some(7));
        assert_eq!(parse_oom_kills("pgfault 1\n"), None);
    }
}
