//! Everything a command has started that is still in its session.
//!
//! A shell with job control puts each job into a process group of its own, so signalling the
//! leader's group misses them; the session is what they have in common.

use std::fs;

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Sends `signal`, if there is one, to every living process of the session. Returns how many there
/// are.
///
/// Reads `/proc`, a few hundred small files: not for a hot path. The session's leader must not be
/// reaped yet, or its number could mean another session by now.
pub(super) fn signal_session(session: Pid, signal: Option<Signal>) -> usize {
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut living = 0;
    for pid in pids {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if parse_stat(&stat).is_some_and(|stat| stat.session == session && !stat.is_ended) {
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(Errno::EPERM) => living += 1,
                Err(_) => {}
            }
        }
    }
    living
}

/// The fields of `/proc/PID/stat` that matter here (`proc_pid_stat(5)`).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    session: Pid,
    is_ended: bool,
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name in brackets, and may have spaces and brackets in it.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    Some(Stat {
        session: Pid::from_raw(session),
        is_ended: matches!(state, "Z" | "X"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let text = "12 (a) 1 2 3 (b) S 1 77 99 34816 12 4194304 1";
        assert_eq!(
            parse_stat(text),
            Some(Stat {
                session: Pid::from_raw(99),
                is_ended: false
            })
        );
    }

    #[test]
    fn a_zombie_has_ended() {
        assert!(parse_stat("12 (a) Z 1 77 99 0").unwrap().is_ended);
    }
}
