//! The living processes that a command has started: the members of its control group and of its
//! session.
//!
//! A shell with job control puts each job into a process group of its own, so a signal to the leader's
//! group is not enough; the jobs share the session. A process that leaves the session too is still in
//! the control group, if there is one.

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use crate::by_insertion::by_insertion;
use nix::{sys::signal::Signal, unistd::Pid};
use tokio::time::{Instant, sleep, timeout};

use super::{
    cgroup::Cgroup,
    child::{Child, signal_process},
};
use crate::{
    defaults,
    system::{blocking::run_blocking, proc_stat::ProcStat},
};

/// Time between two checks whether a process is alive.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The signals that end a command, in this order.
pub(super) const END_SIGNALS: [Signal; 3] = [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGKILL];

/// Longest wait for a thread of the blocking pool.
const THREAD_TIMEOUT: Duration = Duration::from_secs(1);

/// The processes of a command.
#[derive(Debug)]
pub(super) struct ProcessTree {
    members: Arc<Members>,
    /// Time between two of the signals that end it.
    signal_delay: Duration,
}

/// Where a command's processes are found.
#[derive(Debug)]
struct Members {
    cgroup: Option<Cgroup>,
    /// The session leader. Its pid is not reused until it is reaped.
    leader: Arc<Child>,
}

impl ProcessTree {
    /// The processes in the session of `leader` and in `cgroup`. [`end`](Self::end) waits `signal_delay`
    /// after each signal but SIGKILL.
    pub(super) fn new(leader: Arc<Child>, cgroup: Option<Cgroup>, signal_delay: Duration) -> Self {
        Self {
            members: Arc::new(Members { cgroup, leader }),
            signal_delay,
        }
    }

    /// Sends these signals one after the other until no process is alive.
    pub(super) async fn end(&self, signals: &[Signal]) {
        for &signal in signals {
            self.on_thread(move |members| members.signal(signal)).await;
            // SIGKILL cannot be delayed by the process, but by the kernel.
            let delay = match signal {
                Signal::SIGKILL => defaults::KILL_PAUSE,
                _ => self.signal_delay,
            };
            let start = Instant::now();
            loop {
                if !self.on_thread(Members::any_alive).await {
                    return;
                }
                if start.elapsed() >= delay {
                    break;
                }
                sleep(POLL_INTERVAL).await;
            }
        }
        let session = self.members.session().as_raw();
        tracing::warn!(session, "processes survive SIGKILL");
    }

    /// Runs `scan`, which reads a file of each process of the guest, on a blocking thread; if there is
    /// no free thread within [`THREAD_TIMEOUT`], on this one.
    async fn on_thread<T: Send + 'static>(
        &self,
        scan: impl Fn(&Members) -> T + Copy + Send + 'static,
    ) -> T {
        let members = Arc::clone(&self.members);
        let work = run_blocking(move || scan(&members));
        match timeout(THREAD_TIMEOUT, work).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) | Err(_) => scan(&self.members),
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
        // The leader first: a shell whose child ends would continue with its next command.
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

    fn any_alive(&self) -> bool {
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

/// The living processes of a session. Reads a file of each process.
fn session_members(session: Pid) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw)
        .filter(|pid| is_in_session(*pid, session))
        .collect()
}

/// Whether a process is alive and in a session.
fn is_in_session(pid: Pid, session: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let stat = stat.as_deref().and_then(parse_stat);
    stat.is_some_and(|stat| stat.session == session && !stat.is_ended)
}

/// The fields of `/proc/PID/stat` used here (`proc_pid_stat(5)`).
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
