//! Everything a command has started that still lives: what is in its control group, and what is
//! in its session.
//!
//! A shell with job control puts each job into a process group of its own, so signalling the
//! leader's group misses them; the session is what they have in common. What leaves the session
//! too is still in the control group, where there is one.

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use nix::{sys::signal::Signal, unistd::Pid};
use tokio::time::{Instant, sleep, timeout};
use vsock_agent_protocol::by_insertion;

use super::{
    cgroup::Cgroup,
    child::{Child, signal_process},
};
use crate::{
    defaults,
    system::{blocking::run_blocking, proc_stat::ProcStat},
};

/// Time between two looks at whether anything lives.
const PAUSE: Duration = Duration::from_millis(50);

/// The signals that end a command, harder each time.
pub(super) const ENDING: [Signal; 3] = [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGKILL];

/// Time for a thread to be had for a look at all processes.
const THREAD_PATIENCE: Duration = Duration::from_secs(1);

/// What a command has started.
#[derive(Debug)]
pub(super) struct Family {
    members: Arc<Members>,
    /// Time between the signals that end it.
    pause: Duration,
}

/// Where those are found that belong to a command.
#[derive(Debug)]
struct Members {
    cgroup: Option<Cgroup>,
    /// Leads the session, whose number means no other as long as it is not reaped.
    leader: Arc<Child>,
}

impl Family {
    /// The family of `leader`, which leads a session, in `cgroup`. It has `pause` after each signal that
    /// is to end it.
    pub(super) fn new(leader: Arc<Child>, cgroup: Option<Cgroup>, pause: Duration) -> Self {
        Self {
            members: Arc::new(Members { cgroup, leader }),
            pause,
        }
    }

    /// Sends everything these signals, one after the other, until nothing lives.
    pub(super) async fn end(&self, signals: &[Signal]) {
        for &signal in signals {
            self.look(move |members| members.signal(signal)).await;
            // Nothing has a say in SIGKILL, but it takes its time.
            let pause = match signal {
                Signal::SIGKILL => defaults::KILL_PAUSE,
                _ => self.pause,
            };
            let start = Instant::now();
            loop {
                if !self.look(Members::live).await {
                    return;
                }
                if start.elapsed() >= pause {
                    break;
                }
                sleep(PAUSE).await;
            }
        }
        let session = self.members.session().as_raw();
        tracing::warn!(session, "processes survive SIGKILL");
    }

    /// Does what reads `/proc`, which has as many files as the guest has processes, on a thread of its
    /// own. Where there is none, an end must not wait for one.
    async fn look<T: Send + 'static>(
        &self,
        look: impl Fn(&Members) -> T + Copy + Send + 'static,
    ) -> T {
        let members = Arc::clone(&self.members);
        let work = run_blocking(move || look(&members));
        match timeout(THREAD_PATIENCE, work).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) | Err(_) => look(&self.members),
        }
    }
}

impl Members {
    fn session(&self) -> Pid {
        self.leader.pid()
    }

    fn signal(&self, signal: Signal) {
        if let (Signal::SIGKILL, Some(cgroup)) = (signal, &self.cgroup) {
            cgroup.kill();
        }
        // The leader first: a shell whose command was ended would go on with its next.
        let mut all = self.all();
        let leader = all.take(&self.session());
        for pid in leader.into_iter().chain(all) {
            signal_process(pid, signal, |pid| self.has(pid));
        }
    }

    fn has(&self, pid: Pid) -> bool {
        let in_cgroup = |cgroup: &Cgroup| cgroup.has(pid);
        is_in_session(pid, self.session()) || self.cgroup.as_ref().is_some_and(in_cgroup)
    }

    fn live(&self) -> bool {
        match &self.cgroup {
            Some(cgroup) if cgroup.is_populated() => true,
            _ => !session_members(self.session()).is_empty(),
        }
    }

    fn all(&self) -> BTreeSet<Pid> {
        let in_cgroup = self.cgroup.iter().flat_map(Cgroup::members);
        by_insertion(in_cgroup.chain(session_members(self.session())))
    }
}

/// What lives in a session. Reads a file of each process.
fn session_members(session: Pid) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw)
        .filter(|pid| is_in_session(*pid, session))
        .collect()
}

/// Whether a process is in a session, and lives.
fn is_in_session(pid: Pid, session: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let stat = stat.as_deref().and_then(parse_stat);
    stat.is_some_and(|stat| stat.session == session && !stat.is_ended)
}

/// The fields of `/proc/PID/stat` that matter here (`proc_pid_stat(5)`).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    session: Pid,
    is_ended: bool,
}

fn parse_stat(text: &str) -> Option<Stat> {
    let stat = ProcStat::parse(text)?;
    Some(Stat {
        session: Pid::from_raw(stat.number(6)?),
        is_ended: stat.has_ended()?,
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

    #[test]
    fn this_process_lives_in_its_session() {
        let session = nix::unistd::getsid(None).unwrap();
        let own = Pid::from_raw(std::process::id().try_into().unwrap());
        assert!(session_members(session).contains(&own));
    }
}
