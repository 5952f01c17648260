//! A long-running child process that somebody owns.
//!
//! Nothing here goes by name: a process is signalled through the id it was started with, while that
//! id is still ours.

use std::{
    fs::File,
    io,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long a child lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as its owner, and never longer than this process: the kernel sees to that, even
    /// after a SIGKILL.
    Owned,
    /// Until somebody ends it: it has a session of its own, away from this terminal.
    Detached,
}

/// A child that writes to a log file. `Drop` kills an owned one.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    lifetime: Lifetime,
}

impl Process {
    /// Starts `program`.
    ///
    /// # Errors
    ///
    /// Any that opening the log or starting a process has. A program that is not there shows later,
    /// as an end.
    pub(crate) fn start(
        program: &Path,
        arguments: &[String],
        log: &Path,
        lifetime: Lifetime,
    ) -> io::Result<Self> {
        // Either wrapper becomes the program, so the id of one is the id of the other.
        let mut command = match lifetime {
            Lifetime::Owned => {
                let mut setpriv = Command::new("setpriv");
                setpriv.args(["--pdeathsig", "KILL"]);
                setpriv
            }
            Lifetime::Detached => Command::new("setsid"),
        };
        let log = File::create(log)?;
        command.arg(program).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self {
            child: spawn_for_life(command)?,
            lifetime,
        })
    }

    /// The program's process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells whether the child has ended, and reaps it.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal, if the child is still there to get it.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        // The id is the child's until `child` has reaped it, which needs it exclusively.
        let id = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        Ok(kill(Pid::from_raw(id), signal)?)
    }

    /// Ends the child at once.
    pub(crate) fn kill(&mut self) {
        // Fails only if it has already been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Owned {
            self.kill();
        }
    }
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts `command` from a thread that never ends.
///
/// The kernel's "parent death" is the death of the thread that forked, and a test's thread dies
/// with its test, while a VM may be shared by many.
fn spawn_for_life(command: Command) -> io::Result<Child> {
    static KEEPER: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (orders, received) = mpsc::sync_channel::<Order>(1);
        thread::spawn(move || {
            for (mut command, reply) in received {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, child) = mpsc::sync_channel(1);
    keeper.send((command, reply)).map_err(io::Error::other)?;
    child.recv().map_err(io::Error::other)?
}
