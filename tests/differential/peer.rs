//! The two servers, each at the other end of a socket.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use harness::upgrade;

use crate::{
    op::{Kind, Names, Op},
    outcome::Outcome,
    wire::{Writer, kind},
};

/// Debian's OpenSSH server for SFTP.
const OPENSSH_SERVER: &str = "/usr/lib/openssh/sftp-server";

/// Time for an answer on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Time after which a server is asked once more whether it is there.
const PROBE_TIMEOUT: Duration = Duration::from_millis(20);

/// The ids of requests that only ask whether the server is there start here, the others at 1.
const FIRST_PROBE_ID: u32 = 1 << 31;

/// Who serves.
#[derive(Clone, Debug)]
pub(crate) enum Server {
    /// OpenSSH's, as a process of this user, started in this folder.
    OpenSsh { user: Option<u32>, home: PathBuf },
    /// Ours, behind the socket of an agent.
    Agent(PathBuf),
    /// Ours, as a program with arguments.
    Program(PathBuf, Vec<String>),
}

/// A session.
pub(crate) struct Peer {
    server: Server,
    stream: UnixStream,
    process: Option<Child>,
    /// The tree of the sequence.
    root: Vec<u8>,
    handles: HashMap<usize, Vec<u8>>,
    next_id: u32,
    next_probe: u32,
}

/// Requests on their way, by id.
struct Sent<'a> {
    id: u32,
    number: usize,
    op: &'a Op,
}

impl Names for Peer {
    fn root(&self) -> &[u8] {
        &self.root
    }

    fn handle(&self, of: usize) -> &[u8] {
        /// A handle that neither server ever gives.
        const NONE: &[u8] = b"\x7f\xff\xff\xf1";
        self.handles.get(&of).map_or(NONE, Vec::as_slice)
    }
}

impl Peer {
    /// Starts a session.
    pub(crate) fn start(server: &Server) -> (Self, Outcome) {
        let (stream, process) = match server {
            Server::OpenSsh { user, home } => {
                let mut command = Command::new(OPENSSH_SERVER);
                command.arg("-d").arg(home).current_dir(home);
                if let Some(user) = user {
                    // The standard library drops root's other groups too.
                    command.uid(*user).gid(*user);
                }
                on_a_socket(command)
            }
            Server::Program(program, arguments) => {
                let mut command = Command::new(program);
                command.args(arguments);
                on_a_socket(command)
            }
            Server::Agent(socket) => (upgraded(socket), None),
        };
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        let mut peer = Self {
            server: server.clone(),
            stream,
            process,
            root: Vec::new(),
            handles: HashMap::new(),
            next_id: 0,
            next_probe: FIRST_PROBE_ID,
        };
        let mut init = Writer::new(kind::INIT);
        init.number(3);
        let mut hello = 5_u32.to_be_bytes().to_vec();
        hello.append(&mut init.0);
        peer.stream.write_all(&hello).unwrap();
        let frame = peer.frame().unwrap();
        let (_, version) = Outcome::decode(&frame, Kind::Plain(kind::INIT), b"");
        (peer, version)
    }

    /// A new session in place of this one.
    pub(crate) fn restart(&mut self) {
        let (peer, _) = Self::start(&self.server);
        *self = peer;
    }

    /// A new tree: the handles of the old one are forgotten.
    pub(crate) fn enter(&mut self, root: &Path) {
        use std::os::unix::ffi::OsStrExt;
        self.handles.clear();
        self.root = root.as_os_str().as_bytes().to_vec();
    }

    /// The folder that the tree is in, where links may lead to.
    fn outer(&self) -> &[u8] {
        let end = self.root.iter().rposition(|byte| *byte == b'/');
        &self.root[..end.unwrap_or(self.root.len())]
    }

    /// Forgets a handle that is closed: OpenSSH gives the same number again.
    pub(crate) fn forget(&mut self, of: usize) {
        self.handles.remove(&of);
    }

    /// The requests whose handles are open.
    pub(crate) fn open_handles(&self) -> Vec<usize> {
        self.handles.keys().copied().collect()
    }

    /// Sends requests at once.
    pub(crate) fn send<'a>(&mut self, burst: &[&'a (usize, Op)]) -> Flight<'a> {
        let mut bytes = Vec::new();
        let mut sent = VecDeque::new();
        for (number, op) in burst {
            self.next_id += 1;
            bytes.extend_from_slice(&op.encode(self.next_id, self));
            sent.push_back(Sent {
                id: self.next_id,
                number: *number,
                op,
            });
        }
        // A server that has ended shows when it is read from.
        let _ = self.stream.write_all(&bytes);
        Flight {
            silent: self.is_silent(burst),
            sent,
        }
    }

    /// Whether OpenSSH's server is asked something that it does not answer.
    fn is_silent(&self, burst: &[&(usize, Op)]) -> bool {
        let known = |kind| (kind::OPEN..=kind::SYMLINK).contains(&kind) || kind == kind::EXTENDED;
        let silent = |op: &Op| matches!(op.kind, Kind::Plain(kind) if !known(kind));
        matches!(self.server, Server::OpenSsh { .. }) && burst.iter().any(|(_, op)| silent(op))
    }

    /// The answers to what was sent, in the order of the requests.
    pub(crate) fn receive(&mut self, flight: Flight<'_>) -> Vec<Outcome> {
        if flight.silent {
            return vec![self.check_silence(); flight.sent.len()];
        }
        let mut outcomes: HashMap<u32, Outcome> = HashMap::new();
        while outcomes.len() < flight.sent.len() {
            let frame = match self.frame() {
                Ok(frame) => frame,
                Err(error) => return flight.outcomes(outcomes, &missing(&error)),
            };
            let id = u32::from_be_bytes(frame[1..5].try_into().unwrap());
            if id >= FIRST_PROBE_ID {
                continue;
            }
            let sent = flight.sent.iter().find(|sent| sent.id == id);
            let sent = sent.unwrap_or_else(|| panic!("an answer to {id}, which was not asked"));
            let (_, outcome) = Outcome::decode(&frame, sent.op.kind, self.outer());
            if outcome == Outcome::Handle {
                self.handles.insert(sent.number, frame[9..].to_vec());
            }
            let twice = outcomes.insert(id, outcome);
            assert!(twice.is_none(), "two answers to {:?}", sent.op);
        }
        flight.outcomes(outcomes, &Outcome::Silence)
    }

    /// Whether the next answer is that to another request. OpenSSH's server may have read that with
    /// the silent one, and then only looks at it when more comes: so it is asked until it answers.
    fn check_silence(&mut self) -> Outcome {
        self.next_probe += 1;
        let id = self.next_probe;
        let mut probe = Writer::new(kind::LSTAT);
        probe.number(id);
        probe.string(b"/");
        let probe = [&10_u32.to_be_bytes()[..], &probe.0].concat();
        self.stream.set_read_timeout(Some(PROBE_TIMEOUT)).unwrap();
        let outcome = loop {
            let _ = self.stream.write_all(&probe);
            match self.frame() {
                Ok(frame) if frame[1..5] == id.to_be_bytes() => break Outcome::Silence,
                // The answer to an earlier one, which was asked once too often.
                Ok(frame) if frame[1] >= 0x80 => {}
                Ok(frame) => panic!("an answer to what has none: {}", frame.escape_ascii()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => break missing(&error),
            }
        };
        self.stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        outcome
    }

    fn frame(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        // OpenSSH's client takes no more.
        assert!((5..=256 * 1024).contains(&length), "a frame of {length}");
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut frame)?;
        Ok(frame)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Requests whose answers have not been read.
pub(crate) struct Flight<'a> {
    sent: VecDeque<Sent<'a>>,
    silent: bool,
}

fn missing(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::WouldBlock => Outcome::Hang,
        _ => Outcome::End,
    }
}

impl Flight<'_> {
    /// All answers, `missing` where there is none.
    fn outcomes(&self, mut of: HashMap<u32, Outcome>, missing: &Outcome) -> Vec<Outcome> {
        let outcomes = self.sent.iter().map(|sent| of.remove(&sent.id));
        outcomes
            .map(|outcome| outcome.unwrap_or_else(|| missing.clone()))
            .collect()
    }
}

fn on_a_socket(mut command: Command) -> (UnixStream, Option<Child>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let output = OwnedFd::from(theirs.try_clone().unwrap());
    command
        .stdin(OwnedFd::from(theirs))
        .stdout(output)
        .stderr(Stdio::null());
    let child = command.spawn();
    let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}: make setup"));
    (ours, Some(child))
}

fn upgraded(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
    upgrade::ask(&mut stream, &upgrade::request("/1.0/sftp", "sftp"));
    stream
}
