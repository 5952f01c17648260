//! The connections of the process, each for one agent and one identity.

use std::{
    io, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{task::spawn_blocking, time::Instant};
use vsock_agent_client::{
    Client, Endpoint, Identity, IdentityFiles, IdentityPem, Security, Timeouts,
};

use super::message::{Agent, Listed, now};

/// Most connections. Another agent takes the place of the one that was not used for longest.
const MAX_CONNECTIONS: usize = 64;

/// Time without a call after which an agent has to answer before the next one: it may be gone without
/// closing the connection, as a machine that was restored from a snapshot, and pings take longer.
const TRUSTED: Duration = Duration::from_secs(5);

/// What a connection is for. Another identity, or a changed one, has another connection.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    endpoint: Endpoint,
    /// `None` without TLS.
    identity: Option<IdentityPem>,
    silence: Option<Duration>,
}

/// A connection to an agent.
#[derive(Debug)]
struct Connection {
    key: Key,
    client: Client,
    /// When it was made, in seconds since 1970.
    since: AtomicU64,
    usage: Mutex<Usage>,
}

#[derive(Debug)]
struct Usage {
    calls: usize,
    /// When the last call began or ended.
    last: Instant,
}

/// The connections.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Vec<Arc<Connection>>>);

/// A use of a connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Call(Arc<Connection>);

impl Connections {
    /// A connection on which the agent answers.
    ///
    /// # Errors
    ///
    /// That there is none, with the reason.
    pub(super) async fn to(&self, agent: Agent) -> anyhow::Result<Call> {
        let key = Key::of(agent).await?;
        let (call, idle) = self.call(key)?;
        let made = call.0.client.counters().connections;
        match call.0.client.warm_up(idle > TRUSTED).await {
            Ok(true) => {}
            Ok(false) => {
                self.forget(&call);
                anyhow::bail!("the agent does not speak HTTP/2");
            }
            Err(error) => {
                self.forget(&call);
                return Err(error.into());
            }
        }
        if call.0.client.counters().connections != made {
            call.0.since.store(now(), Ordering::Relaxed);
        }
        Ok(call)
    }

    /// Counts a call for `key`, and says how long there was none before.
    fn call(&self, key: Key) -> anyhow::Result<(Call, Duration)> {
        let mut list = self.list();
        if let Some(known) = list.iter().find(|known| known.key == key) {
            return Ok(Call::begin(known));
        }
        if list.len() >= MAX_CONNECTIONS {
            let unused = list
                .iter()
                .enumerate()
                .filter(|(_, one)| one.usage().calls == 0);
            let oldest = unused.min_by_key(|(_, one)| one.usage().last);
            let Some((oldest, _)) = oldest else {
                anyhow::bail!("there are {MAX_CONNECTIONS} connections, and all are used");
            };
            list.swap_remove(oldest);
        }
        let new = Arc::new(Connection::new(key)?);
        list.push(Arc::clone(&new));
        Ok(Call::begin(&new))
    }

    /// Makes later calls use another connection.
    fn forget(&self, call: &Call) {
        self.list().retain(|one| !Arc::ptr_eq(one, &call.0));
    }

    /// Closes the connections that were not used for `limit`.
    pub(super) fn close_unused(&self, limit: Duration) {
        let is_used = |one: &Arc<Connection>| {
            let usage = one.usage();
            usage.calls > 0 || usage.last.elapsed() < limit
        };
        let mut list = self.list();
        let (kept, closed) = mem::take(&mut *list).into_iter().partition(is_used);
        *list = kept;
        drop(list);
        drop::<Vec<_>>(closed);
    }

    /// All of them, for people.
    pub(super) fn listed(&self) -> Vec<Listed> {
        let list = self.list();
        list.iter().map(|one| one.listed()).collect()
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Key {
    /// Reads the identity, for each call.
    async fn of(agent: Agent) -> anyhow::Result<Self> {
        let identity = match agent.identity {
            Some(files) => {
                let files = IdentityFiles::from(files);
                Some(spawn_blocking(move || files.read()).await??)
            }
            None => None,
        };
        Ok(Self {
            endpoint: agent.endpoint.parse()?,
            identity,
            silence: agent.silence.map(Duration::from_secs),
        })
    }

    fn security(&self) -> anyhow::Result<Security> {
        Ok(match &self.identity {
            Some(pem) => Security::Tls(Identity::from_pem(pem)?),
            None => Security::Plain,
        })
    }
}

impl Connection {
    fn new(key: Key) -> anyhow::Result<Self> {
        let mut timeouts = Timeouts::default();
        timeouts.silence = key.silence;
        Ok(Self {
            client: Client::for_relay(key.endpoint.clone(), key.security()?, timeouts),
            key,
            since: AtomicU64::new(now()),
            usage: Mutex::new(Usage {
                calls: 0,
                last: Instant::now(),
            }),
        })
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed(&self) -> Listed {
        Listed {
            endpoint: self.key.endpoint.to_string(),
            tls: self.key.identity.is_some(),
            since: self.since.load(Ordering::Relaxed),
            streams: self.usage().calls,
        }
    }
}

impl Call {
    /// Begins one, and says how long there was none before.
    fn begin(connection: &Arc<Connection>) -> (Self, Duration) {
        let mut usage = connection.usage();
        let idle = match usage.calls {
            0 => usage.last.elapsed(),
            _ => Duration::ZERO,
        };
        usage.calls += 1;
        usage.last = Instant::now();
        drop(usage);
        (Self(Arc::clone(connection)), idle)
    }

    /// Serves the process at the other end of a socket, until it closes it.
    ///
    /// # Errors
    ///
    /// Why its connection ended.
    pub(super) async fn serve(&self, socket: tokio::net::UnixStream) -> io::Result<()> {
        self.0.client.relay(socket).await
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut usage = self.0.usage();
        usage.calls -= 1;
        usage.last = Instant::now();
    }
}
