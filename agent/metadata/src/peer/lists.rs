//! Looks up a user in the list of all sockets (`proc(5)`, Linux `net/ipv4/tcp_ipv4.c`), without `sock_diag`.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use vsock_agent_transport::run_blocking_on;

use super::Ends;

/// The lists. Programs connect to an IPv4 address from sockets of both families.
pub(super) const LISTS: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];

/// How often they are read for one lookup: a row can be missed if the kernel's table changes meanwhile.
const LOOKS: u32 = 3;

/// Most lookups that wait for one reading.
const MAX_LOOKUPS: usize = 128;

/// A pending lookup.
#[derive(Debug)]
struct Question {
    ends: Ends,
    answer: oneshot::Sender<io::Result<Option<u32>>>,
}

/// A task that reads the lists, once for all pending lookups. It ends in `Drop`.
#[derive(Debug)]
pub(crate) struct Lists {
    questions: mpsc::Sender<Question>,
    _task: JoinSet<()>,
}

impl Lists {
    /// Starts the task.
    pub(super) fn open() -> Self {
        let (questions, asked) = mpsc::channel(MAX_LOOKUPS);
        let mut task = JoinSet::new();
        task.spawn(answer_all(asked));
        Self {
            questions,
            _task: task,
        }
    }

    /// As [`super::Peers::user`].
    ///
    /// # Errors
    ///
    /// Those of reading the lists.
    pub(super) async fn user(&self, ends: Ends) -> io::Result<Option<u32>> {
        let (answer, answered) = oneshot::channel();
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let asked = self.questions.send(Question { ends, answer }).await;
        asked.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

async fn answer_all(mut asked: mpsc::Receiver<Question>) {
    let mut questions = Vec::new();
    while asked.recv_many(&mut questions, MAX_LOOKUPS).await > 0 {
        let batch = std::mem::take(&mut questions);
        // If no thread can be started, the senders are dropped, and the lookups fail.
        let _ = run_blocking_on(Path::new(LISTS[0]), move || {
            answer(batch);
            Ok(())
        })
        .await;
    }
}

fn answer(questions: Vec<Question>) {
    let mut users: HashMap<Ends, Option<u32>> = HashMap::new();
    users.extend(questions.iter().map(|question| (question.ends, None)));
    let read = read(&mut users);
    for Question { ends, answer } in questions {
        let user = match &read {
            Ok(()) => Ok(users.get(&ends).copied().flatten()),
            Err(error) => Err(error.kind().into()),
        };
        // The receiver may have been dropped.
        let _ = answer.send(user);
    }
}

/// Fills in the users that are found.
fn read(users: &mut HashMap<Ends, Option<u32>>) -> io::Result<()> {
    let mut missing = users.len();
    for list in (0..LOOKS).flat_map(|_| LISTS) {
        let file = match File::open(list) {
            // Without IPv6 there is one list.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        for line in BufReader::new(file).lines() {
            if let Some((ends, user)) = parse(&line?)
                && let Some(known @ None) = users.get_mut(&ends)
            {
                *known = Some(user);
                missing -= 1;
            }
            if missing == 0 {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A row of a list: the ends as the other side sees them, and the user. `None` for the heading, and for
/// a closed socket.
fn parse(line: &str) -> Option<(Ends, u32)> {
    let mut words = line.split_ascii_whitespace();
    let local = address(words.nth(1)?)?;
    let remote = address(words.next()?)?;
    let user = words.nth(4)?.parse().ok()?;
    let inode: u64 = words.nth(1)?.parse().ok()?;
    (inode != 0).then(|| (Ends::new(local, remote), user))
}

/// `0100007F:0050`: words of the address as the processor has them, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    let mut rest = words;
    while !rest.is_empty() {
        let (word, after) = rest.split_at_checked(8)?;
        bytes.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
        rest = after;
    }
    let ip = match bytes.len() {
        4 => Ipv4Addr::from(*bytes.first_chunk()?).into(),
        16 => IpAddr::from(Ipv6Addr::from(*bytes.first_chunk()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_the_kernel_writes_them() {
        let words = if cfg!(target_endian = "little") {
            ["0100007F:0050", "FEA9FEA9:E1F0"]
        } else {
            ["7F000001:0050", "A9FEA9FE:E1F0"]
        };
        let row = |inode| {
            let [local, remote] = words;
            format!(
                "   3: {local} {remote} 01 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0 20 4 30 10 -1"
            )
        };
        let ends = Ends {
            peer: "127.0.0.1:80".parse().unwrap(),
            own: "169.254.169.254:57840".parse().unwrap(),
        };
        assert_eq!(parse(&row(77)), Some((ends, 1000)));
        assert_eq!(parse(&row(0)), None, "closed by its owner");
        assert_eq!(parse("  sl  local_address rem_address   st tx_queue"), None);
        assert_eq!(parse(""), None);
        assert_eq!(address("0000000000000000FFFF00000100007F:zz"), None);
        assert_eq!(address("0100007F00:0050"), None);
    }
}
