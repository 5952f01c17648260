//! A host that has instance data for one guest, written from LXD's API and not from our own host, so
//! that a mistake both our ends make is still seen.

use std::{
    collections::BTreeMap,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{Shutdown, shutdown};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::oneshot,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use crate::{Pair, pinned::server_config};

/// What the host has, and how it behaves.
#[derive(Debug, Clone)]
pub struct HostData {
    /// Keys and values.
    pub config: BTreeMap<String, String>,
    /// Keys that are listed and have no value.
    pub unset: Vec<String>,
    /// Text.
    pub meta_data: String,
    /// By name.
    pub devices: Value,
    /// Paths that are answered with this status instead, with every query or with one.
    pub failing: BTreeMap<String, u16>,
    /// Whole answers, head included, to requests that are written so: `METHOD path?query`.
    pub answers: BTreeMap<String, Vec<u8>>,
    /// Time before each answer.
    pub delay: Duration,
    /// Whether it tells all keys with their values when it is asked for them, as our own host does.
    /// LXD's and Incus's pass over the query.
    pub tells_values: bool,
    /// Values that are no strings, told so with all keys.
    pub odd_values: BTreeMap<String, Value>,
    /// Whether a connection is closed after each answer, as LXD's own agent asks for.
    pub closes: bool,
    /// Every request so far: method, path and body.
    pub log: Vec<String>,
    /// The heads of the same requests, as they came.
    pub heads: Vec<String>,
}

impl Default for HostData {
    fn default() -> Self {
        Self {
            config: BTreeMap::new(),
            unset: Vec::new(),
            meta_data: "instance-id: one\nlocal-hostname: guest\n".to_owned(),
            devices: json!({ "eth0": { "type": "nic", "hwaddr": "00:16:3e:00:00:01" } }),
            failing: BTreeMap::new(),
            answers: BTreeMap::new(),
            delay: Duration::ZERO,
            tells_values: false,
            odd_values: BTreeMap::new(),
            closes: false,
            log: Vec::new(),
            heads: Vec::new(),
        }
    }
}

impl HostData {
    /// A host that has these keys.
    #[must_use]
    pub fn with(config: &[(&str, &str)]) -> Self {
        let config = config
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Self {
            config,
            ..Self::default()
        }
    }
}

/// Where a host listens for its guest.
#[derive(Debug, Clone)]
pub enum HostAddress {
    /// On this Unix socket.
    Unix(PathBuf),
    /// On this port of AF_VSOCK.
    Vsock(u32),
}

impl<P: AsRef<Path> + ?Sized> From<&P> for HostAddress {
    fn from(path: &P) -> Self {
        Self::Unix(path.as_ref().to_owned())
    }
}

impl HostAddress {
    fn open(&self) -> Listener {
        match self {
            Self::Unix(path) => {
                // As one that ran before and was not stopped would leave it.
                drop(std::fs::remove_file(path));
                Listener::Unix(UnixListener::bind(path).unwrap())
            }
            Self::Vsock(port) => {
                let address = VsockAddr::new(VMADDR_CID_ANY, *port);
                Listener::Vsock(VsockListener::bind(address).unwrap())
            }
        }
    }
}

/// An open [`HostAddress`].
enum Listener {
    Unix(UnixListener),
    Vsock(VsockListener),
}

impl Listener {
    async fn accept(&self) -> Either<UnixStream, VsockStream> {
        match self {
            Self::Unix(listener) => Either::Left(listener.accept().await.unwrap().0),
            Self::Vsock(listener) => Either::Right(listener.accept().await.unwrap().0),
        }
    }

    /// From now on nobody can connect, also where another test is just starting a program, which has
    /// a copy of the socket until it runs.
    fn refuse(&self) {
        if let Self::Unix(listener) = self {
            shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
        }
    }
}

/// A host that listens. `Drop` ends it.
#[derive(Debug)]
pub struct MockHost {
    data: Arc<Mutex<HostData>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MockHost {
    /// Listens at `address`, and speaks HTTP without TLS.
    #[must_use]
    pub fn start(address: impl Into<HostAddress>, data: HostData) -> Self {
        Self::run(address.into(), data, None)
    }

    /// Listens at `address` with TLS; with an `agent`, only for that one.
    #[must_use]
    pub fn start_tls(
        address: impl Into<HostAddress>,
        data: HostData,
        own: &Pair,
        agent: Option<&Pair>,
    ) -> Self {
        let config = server_config(own, agent);
        Self::run(
            address.into(),
            data,
            Some(TlsAcceptor::from(Arc::new(config))),
        )
    }

    fn run(address: HostAddress, data: HostData, tls: Option<TlsAcceptor>) -> Self {
        let data = Arc::new(Mutex::new(data));
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = mpsc::channel();
        let shared = Arc::clone(&data);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = address.open();
                bound.send(()).unwrap();
                tokio::select! {
                    () = accept(&listener, shared, tls) => {}
                    _ = stopped => listener.refuse(),
                }
            });
        });
        is_bound.recv().expect("the host cannot bind");
        Self {
            data,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Changes what it has, from the next answer on.
    pub fn change(&self, change: impl FnOnce(&mut HostData)) {
        change(&mut self.data.lock().unwrap());
    }

    /// The heads of all requests so far.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.data.lock().unwrap().heads.clone()
    }

    /// Every request so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.data.lock().unwrap().log.clone()
    }
}

impl Drop for MockHost {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: &Listener, data: Arc<Mutex<HostData>>, tls: Option<TlsAcceptor>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = listener.accept().await;
        let (data, tls) = (Arc::clone(&data), tls.clone());
        connections.spawn(async move {
            // An agent may leave at any time, or be another than the one that is known.
            match tls {
                None => drop(serve(stream, &data).await),
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        drop(serve(stream, &data).await);
                    }
                }
            }
        });
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    data: &Mutex<HostData>,
) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let head: Vec<u8> = read.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let length = head
            .lines()
            .find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.parse().unwrap())
            })
            .unwrap_or(0);
        while read.len() < length {
            stream.read_buf(&mut read).await?;
        }
        let body: Vec<u8> = read.drain(..length).collect();
        let body = String::from_utf8_lossy(&body).into_owned();
        let (reply, delay, closes) = {
            let mut data = data.lock().unwrap();
            let mut words = head.split(' ');
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            let line = format!("{method} {path} {body}");
            data.log.push(line.trim_end().to_owned());
            data.heads.push(head.clone());
            (answer(&data, method, path), data.delay, data.closes)
        };
        sleep(delay).await;
        stream.write_all(&reply).await?;
        if closes {
            return Ok(());
        }
    }
}

fn answer(data: &HostData, method: &str, path: &str) -> Vec<u8> {
    let whole = path;
    if let Some(answer) = data.answers.get(&format!("{method} {whole}")) {
        return answer.clone();
    }
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if let Some(status) = data.failing.get(whole).or(data.failing.get(path)) {
        return refuse(*status, "the host says no");
    }
    let metadata = match (method, path) {
        ("PATCH", "/1.0") => json!({}),
        ("GET", "/1.0") => json!({
            "api_version": "1.0", "auth": "untrusted", "instance_type": "virtual-machine",
            "location": "none", "state": "Started", "supported_storage_drivers": [],
        }),
        ("GET", "/1.0/config") if data.tells_values && query == "recursion=1" => {
            let values = data.config.iter();
            let values = values.map(|(key, value)| (key.clone(), json!(value)));
            values.chain(data.odd_values.clone()).collect()
        }
        ("GET", "/1.0/config") => {
            let keys = data.config.keys().chain(&data.unset);
            keys.map(|key| format!("/1.0/config/{key}")).collect()
        }
        ("GET", "/1.0/meta-data") => json!(data.meta_data),
        ("GET", "/1.0/devices") => data.devices.clone(),
        ("GET", path) => match path.strip_prefix("/1.0/config/").map(unescape) {
            Some(key) => match data.config.get(&key) {
                Some(value) => json!(value),
                None => return refuse(404, "not found"),
            },
            // Of Go's own.
            None => return http_text(404, "text/plain; charset=utf-8", "404 page not found\n"),
        },
        _ => return refuse(501, "not implemented"),
    };
    result(&metadata)
}

/// A result in LXD's envelope, for [`HostData::answers`].
#[must_use]
pub fn result(metadata: &Value) -> Vec<u8> {
    let envelope = json!({
        "type": "sync", "status": "Success", "status_code": 200, "operation": "",
        "error_code": 0, "error": "", "metadata": metadata,
    });
    http(200, &envelope)
}

/// A refusal in LXD's envelope, for [`HostData::answers`].
#[must_use]
pub fn refuse(status: u16, text: &str) -> Vec<u8> {
    let envelope = json!({
        "type": "error", "status": "", "status_code": 0, "operation": "",
        "error_code": status, "error": text, "metadata": null,
    });
    http(status, &envelope)
}

fn http(status: u16, envelope: &Value) -> Vec<u8> {
    http_text(status, "application/json", &format!("{envelope}\n"))
}

/// An answer for [`HostData::answers`]: a head with this type and the text's length, and the text.
#[must_use]
pub fn http_text(status: u16, content_type: &str, text: &str) -> Vec<u8> {
    let length = text.len();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n\
         {text}"
    )
    .into_bytes()
}

/// The text that a path stands for (RFC 3986, section 2.1).
fn unescape(path: &str) -> String {
    let mut bytes = path.bytes();
    let mut text = Vec::new();
    while let Some(byte) = bytes.next() {
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap();
        text.push(match byte {
            b'%' => {
                let (high, low) = (bytes.next().unwrap(), bytes.next().unwrap());
                u8::try_from(digit(high) * 16 + digit(low)).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(text).unwrap()
}
