//! `/proc/PID/stat` (`proc_pid_stat(5)`).

use std::str::FromStr;

/// The fields after the command name.
#[derive(Debug)]
pub(crate) struct ProcStat<'a>(Vec<&'a str>);

impl<'a> ProcStat<'a> {
    /// Splits the text into fields. `None` without a command name.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        // The second field is the command name in parentheses. It may contain spaces and parentheses.
        let (_, rest) = text.rsplit_once(')')?;
        Some(Self(rest.split_ascii_whitespace().collect()))
    }

    /// Whether the process is a zombie or dead. `None` if the text is truncated.
    pub(crate) fn has_ended(&self) -> Option<bool> {
        Some(matches!(*self.0.first()?, "Z" | "X"))
    }

    /// The field with this number in the manual page, which must be 3 or more.
    pub(crate) fn number<N: FromStr>(&self, field: usize) -> Option<N> {
        self.0.get(field - 3)?.parse().ok()
    }
}
