//! Metadata services of other clouds, as a program in the guest meets them: the files that are
//! shipped, at a port of the loopback instead of their own address.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use harness::{HostData, MockHost, Random, RawClient, TestAgent, eventually, free_port};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    process::Command,
    time::{Instant, timeout},
};
use vsock_agent::Config;
use vsock_agent_metadata::Preset;
use vsock_agent_protocol::preset::shipped;

use crate::wire::header;

/// Far longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent with one service, its host, and where the service is.
struct Service {
    agent: TestAgent,
    _host: MockHost,
    address: SocketAddr,
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Service {
    async fn start(preset: &str) -> Self {
        Self::configured(shipped(preset).unwrap(), |_| {}).await
    }

    async fn configured(text: &str, change: impl FnOnce(&mut Config)) -> Self {
        Self::on_port(free_port(), text, change).await
    }

    async fn on_port(port: u16, text: &str, change: impl FnOnce(&mut Config)) -> Self {
        let place = format!("address = \"127.0.0.1\"\nport = {port}\n");
        // Its own address is said once.
        let lines = text.lines().filter(|line| !line.starts_with("address = "));
        let text = lines.fold(place, |text, line| text + line + "\n");
        let mut agent = TestAgent::configured(|config| {
            let socket = config.guest.sockets[0].with_file_name("host.sock");
            config.guest.host = Some(format!("unix:{}", socket.display()).parse().unwrap());
            config.guest.presets.presets = vec![Arc::new(Preset::parse("test", &text).unwrap())];
            change(config);
        });
        let mut data = HostData::with(&[
            ("cloud-init.user-data", "#cloud-config\n# zürich\n"),
            ("cloud-init.vendor-data", "#cloud-config\n{}\n"),
            ("user.role", "web"),
        ]);
        data.meta_data += "region: here\navailability-zone: here-1\npublic-keys:\n- ssh-rsa A a\n";
        let host = MockHost::start(&agent.folder().join("host.sock"), data);
        agent.ready().await;
        Self {
            agent,
            _host: host,
            address: ([127, 0, 0, 1], port).into(),
        }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[&str]) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for header in headers {
            request += &format!("{header}\r\n");
        }
        let answer = exchange(self.address, (request + "\r\n").as_bytes()).await;
        read(&answer).unwrap_or_else(|| panic!("{method} {path}: no answer"))
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[]).await
    }

    /// The body of an answer that is a good one.
    async fn body(&self, path: &str) -> String {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.body
    }
}

/// Says this, and hears all that is answered.
async fn exchange(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request).await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut answer).await
    };
    // Nonsense may end in a reset.
    let _ = timeout(PATIENCE, exchange).await.expect("no end");
    answer
}

fn read(answer: &[u8]) -> Option<Answer> {
    let (head, body) = std::str::from_utf8(answer).ok()?.split_once("\r\n\r\n")?;
    Some(Answer {
        status: head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";

#[tokio::test]
async fn ec2_metadata_without_token() {
    let service = Service::start("ec2").await;
    let id = "/2021-03-23/meta-data/instance-id";
    assert_eq!(service.body(id).await, "one");
    let answer = service.get("/latest/user-data").await;
    assert_eq!(answer.body, "#cloud-config\n# zürich\n");
    let kind = header(&answer.head, "content-type");
    assert_eq!(kind, Some("application/octet-stream"));
    let keys = service.body("/latest/meta-data/public-keys/").await;
    assert_eq!(keys, "0=key-0");
    let key = "/latest/meta-data/public-keys/0/openssh-key";
    assert_eq!(service.body(key).await, "ssh-rsa A a");
    let macs = service.body("/latest/meta-data/network/interfaces/macs/");
    assert_eq!(macs.await, "00:16:3e:00:00:01/");
    let listing = service.body("/latest/meta-data/").await;
    assert_eq!(service.body("/latest/meta-data").await, listing);
    let whole = format!("http://169.254.169.254{id}");
    assert_eq!(service.body(&whole).await, "one", "through a proxy");
    let escaped = "/latest/meta-data/network/interfaces/macs/00%3A16%3a3e:00:00:01/mac";
    assert_eq!(service.body(escaped).await, "00:16:3e:00:00:01");
}

#[tokio::test]
async fn ec2_token_by_put_with_ttl() {
    let service = Service::start("ec2").await;
    let path = "/latest/api/token";
    for (headers, status) in [
        (vec![], 400),
        (vec!["0"], 400),
        (vec!["21601"], 400),
        (vec!["-1"], 400),
        (vec!["ten"], 400),
        (vec!["99999999999999999999"], 400),
        (vec!["21600"], 200),
        (vec!["1"], 200),
    ] {
        let header: Vec<_> = headers.iter().map(|ttl| format!("{TTL}: {ttl}")).collect();
        let header: Vec<_> = header.iter().map(String::as_str).collect();
        let answer = service.ask("PUT", path, &header).await;
        assert_eq!(answer.status, status, "{headers:?}: {answer:?}");
    }
    let ttl = format!("{TTL}: 60");
    let forwarded = [ttl.as_str(), "X-Forwarded-For: 10.0.0.1"];
    assert_eq!(service.ask("PUT", path, &forwarded).await.status, 403);
    let token = service.ask("PUT", path, &[&ttl]).await.body;
    let token = format!("X-aws-ec2-metadata-token: {token}");
    for headers in [&forwarded[1..], &[&token, forwarded[1]]] {
        let answer = service.ask("GET", "/latest/meta-data/", headers).await;
        assert_eq!(answer.status, 403, "{headers:?}");
        assert_eq!(header(&answer.head, "server"), Some("EC2ws"));
    }
    for method in ["GET", "HEAD", "POST", "DELETE"] {
        let answer = service.ask(method, path, &[&ttl]).await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(header(&answer.head, "allow"), Some("PUT"));
    }
    let answer = service.ask("PUT", path, &[&ttl]).await;
    assert_eq!(header(&answer.head, TTL), Some("60"));
    let token = format!("X-aws-ec2-metadata-token: {}", answer.body);
    let id = "/latest/meta-data/instance-id";
    assert_eq!(service.ask("GET", id, &[&token]).await.body, "one");
    for wrong in ["", "x", "60-ab", &format!("9{}", answer.body)] {
        let wrong = format!("X-aws-ec2-metadata-token: {wrong}");
        assert_eq!(
            service.ask("GET", id, &[&wrong]).await.status,
            401,
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn token_required_refuses_requests_without() {
    let wanted = |config: &mut Config| config.guest.presets.only_with_token = true;
    let service = Service::configured(shipped("ec2").unwrap(), wanted).await;
    for path in ["/", "/latest/meta-data/", "/latest/user-data", "/none"] {
        for method in ["GET", "HEAD", "PUT"] {
            let answer = service.ask(method, path, &[]).await;
            assert_eq!(answer.status, 401, "{method} {path}: {answer:?}");
            assert!(!answer.body.contains("zürich"));
        }
    }
    let ttl = format!("{TTL}: 60");
    let token = service.ask("PUT", "/latest/api/token", &[&ttl]).await.body;
    let token = format!("X-aws-ec2-metadata-token: {token}");
    let id = service
        .ask("GET", "/latest/meta-data/instance-id", &[&token])
        .await;
    assert_eq!((id.status, id.body.as_str()), (200, "one"));
}

#[tokio::test]
async fn ec2_variants_have_no_tokens() {
    for preset in ["brightbox", "e24cloud", "outscale", "zstack"] {
        let service = Service::start(preset).await;
        let ttl = format!("{TTL}: 60");
        let answer = service.ask("PUT", "/latest/api/token", &[&ttl]).await;
        assert_eq!(answer.status, 404, "{preset}");
        let id = service.body("/2009-04-04/meta-data/instance-id").await;
        assert_eq!(id, "one", "{preset}");
    }
}

#[tokio::test]
async fn aliyun_and_openstack_documents_are_json() {
    let json = async |service: &Service, path: &str| -> Value {
        let answer = service.get(path).await;
        assert_eq!(
            header(&answer.head, "content-type"),
            Some("application/json")
        );
        serde_json::from_str(&answer.body).unwrap()
    };
    let service = Service::start("aliyun").await;
    let all = json(&service, "/2016-01-01/meta-data/all").await;
    assert_eq!(all["zone-id"], "here-1");
    assert_eq!(all["public-keys"]["key-0"]["openssh-key"], "ssh-rsa A a");
    let macs = &all["network"]["interfaces"]["macs"];
    assert_eq!(macs["00:16:3e:00:00:01"]["mac"], "00:16:3e:00:00:01");
    let vendor = service.get("/2016-01-01/vendor-data").await;
    assert_eq!(vendor.status, 404, "it is in the user-data");

    let service = Service::start("openstack").await;
    let meta = json(&service, "/openstack/latest/meta_data.json").await;
    assert_eq!(meta["availability_zone"], "here-1");
    let vendor = json(&service, "/openstack/latest/vendor_data.json").await;
    assert_eq!(vendor, json!({ "cloud-init": "#cloud-config\n{}\n" }));
}

#[tokio::test]
async fn custom_preset_file_with_headers() {
    let text = r#"
        require = { Metadata-Flavor = "Google" }
        respond = { Metadata-Flavor = "Google" }
        routes = [
            { path = "/role", text = "${config.user.role}" },
            { path = "/done", method = "POST", status = 202, text = "" },
        ]
    "#;
    let service = Service::configured(text, |_| {}).await;
    let flavour = "metadata-flavor: Google";
    let answer = service.ask("GET", "/role", &[flavour]).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "web"));
    assert_eq!(header(&answer.head, "metadata-flavor"), Some("Google"));
    assert_eq!(service.ask("POST", "/done", &[flavour]).await.status, 202);
    for wrong in [&[][..], &["Metadata-Flavor: other"]] {
        let answer = service.ask("GET", "/role", wrong).await;
        assert_eq!(answer.status, 403);
        assert!(
            answer.body.contains("metadata-flavor: Google"),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn metadata_errors_are_plain_text() {
    let service = Service::start("ec2").await;
    for (method, path, status) in [
        ("GET", "/latest/meta-data/none", 404),
        ("GET", "/latest/meta-data/../user-data", 404),
        ("GET", "/2000-01-01/user-data", 404),
        ("GET", "/%ff", 404),
        ("GET", "/latest/meta-data/%00", 404),
        ("GET", "/1.0/config", 404),
        ("POST", "/1.0/exec", 404),
        ("GET", "/1.0/sftp", 404),
        ("PUT", "/latest/meta-data/instance-id", 405),
        ("POST", "/latest/meta-data/", 405),
        ("DELETE", "/latest/user-data", 405),
        ("BREW", "/latest/user-data", 405),
        ("OPTIONS", "*", 404),
    ] {
        let answer = service.ask(method, path, &[]).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert!(answer.body.ends_with('\n'), "{answer:?}");
        let allow = header(&answer.head, "allow");
        assert_eq!(allow, (status == 405).then_some("GET, HEAD"), "{path}");
    }
    let answer = service
        .ask("HEAD", "/latest/meta-data/instance-id", &[])
        .await;
    assert_eq!(header(&answer.head, "content-length"), Some("3"));
    assert_eq!(answer.body, "");
}

/// What another user of the machine reads from the service.
async fn as_nobody(address: SocketAddr) -> String {
    let script = "import socket, sys\n\
        s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n\
        s.sendall(b'GET /latest/user-data HTTP/1.0\\r\\n\\r\\n')\n\
        while part := s.recv(4096): sys.stdout.buffer.write(part)\n";
    let mut child = Command::new("setpriv");
    child
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["/usr/bin/python3", "-c", script])
        .arg(address.port().to_string())
        .stdin(Stdio::null());
    let output = timeout(PATIENCE, child.output()).await.unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn metadata_is_root_only_unless_configured() {
    let service = Service::start("ec2").await;
    let answer = as_nobody(service.address).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(!answer.contains("zürich"));
    let mapped = ([0, 0, 0, 0, 0, 0xffff, 0x7f00, 1], service.address.port());
    let request = b"GET /latest/user-data HTTP/1.0\r\n\r\n";
    let answer = exchange(mapped.into(), request).await;
    assert_eq!(read(&answer).map(|answer| answer.status), Some(200), "root");

    let everybody = |config: &mut Config| config.guest.presets.for_all_users = true;
    let service = Service::configured(shipped("ec2").unwrap(), everybody).await;
    let answer = as_nobody(service.address).await;
    assert!(answer.contains("zürich"), "{answer}");
}

#[tokio::test]
async fn no_metadata_service_in_a_real_cloud() {
    let real = |config: &mut Config| {
        let folder = config.root.join("sys/class/dmi/id");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("sys_vendor"), "Amazon EC2\n").unwrap();
    };
    let service = Service::configured(shipped("ec2").unwrap(), real).await;
    TcpStream::connect(service.address).await.unwrap_err();
    assert!(service.agent.guest_socket().exists());
}

#[tokio::test]
async fn metadata_address_is_removed_with_the_agent() {
    let mut service = Service::start("ec2").await;
    assert_eq!(service.get("/").await.status, 200);
    service.agent.stop();
    TcpStream::connect(service.address).await.unwrap_err();
}

/// A server of the guest's own that says hello.
async fn web_server(address: SocketAddr) -> TcpListener {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket
        .bind(address)
        .unwrap_or_else(|error| panic!("{address}: {error}"));
    let listener = socket.listen(8).unwrap();
    // Another address of the machine leads to it, whatever has the port of the service.
    let port = listener.local_addr().unwrap().port();
    let (client, accepted) =
        tokio::join!(TcpStream::connect(("127.0.0.2", port)), listener.accept());
    let client = client.unwrap().local_addr().unwrap();
    assert_eq!(client.port(), accepted.unwrap().1.port());
    listener
}

#[tokio::test]
async fn metadata_port_stays_free_for_the_guest() {
    for everywhere in ["0.0.0.0", "::"] {
        let everywhere: IpAddr = everywhere.parse().unwrap();
        let service = Service::start("ec2").await;
        let port = service.address.port();
        let server = web_server((everywhere, port).into()).await;
        let id = "/latest/meta-data/instance-id";
        assert_eq!(
            service.body(id).await,
            "one",
            "{everywhere}: the service first"
        );
        let taken = timeout(Duration::from_millis(1), server.accept()).await;
        assert!(
            taken.is_err(),
            "{everywhere}: the server gets what is the service's"
        );

        // The other way round, and with connections of the service's open.
        drop(service);
        let service = Service::on_port(port, shipped("ec2").unwrap(), |_| {}).await;
        let answered = service.body(id).await;
        assert_eq!(answered, "one", "{everywhere}: the server first");
        let idle = TcpStream::connect(service.address).await.unwrap();
        assert_eq!(service.body(id).await, "one");
        drop(server);
        web_server((everywhere, port).into()).await;
        drop(idle);
    }
}

/// Without root's rights the port cannot be left to others.
#[test]
fn metadata_service_takes_a_port_once_it_is_free() {
    harness::as_nobody(|| {
        let asked = async {
            let port = free_port();
            let server = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            let service = Service::on_port(port, shipped("ec2").unwrap(), |_| {}).await;
            drop(server);
            let request = "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n\r\n";
            let is_served = async || {
                let answer = exchange(service.address, request.as_bytes()).await;
                read(&answer).is_some_and(|answer| answer.body == "one")
            };
            assert!(eventually(PATIENCE, is_served).await);
        };
        tokio::runtime::Runtime::new().unwrap().block_on(asked);
    });
}

/// Connects to the port in its argument and breaks the connection off, again and again, from two
/// processes, while five thousand other sockets are there to be looked through.
const FLOOD: &str = "
import os, resource, socket, struct, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
own = socket.create_server(('127.0.0.1', 0), backlog=4096)
kept = []
for _ in range(min(2500, most // 2 - 50)):
    kept += [socket.create_connection(own.getsockname()), own.accept()]
print('ready', flush=True)
os.fork()
parent = os.getppid()
while os.getppid() == parent:
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.settimeout(1)
    try: s.connect(('127.0.0.1', int(sys.argv[1])))
    except OSError: pass
    s.close()
";

#[tokio::test]
async fn connection_flood_of_another_user_does_not_delay_root() {
    let service = Service::start("ec2").await;
    let mut flood = Command::new("setpriv");
    flood
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--pdeathsig=KILL", "/usr/bin/python3", "-c", FLOOD])
        .arg(service.address.port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut flood = flood.spawn().unwrap();
    let mut ready = [0; 6];
    let stdout = flood.stdout.as_mut().unwrap();
    let read = timeout(PATIENCE, stdout.read_exact(&mut ready)).await;
    read.expect("it does not start").unwrap();
    let (mut agent, mut metadata) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..50 {
        let start = Instant::now();
        let reply = RawClient::new(&service.agent.socket()).get("/1.0").await;
        assert_eq!(reply.status, 200);
        agent = agent.max(start.elapsed());
        let start = Instant::now();
        service.body("/latest/meta-data/instance-id").await;
        metadata = metadata.max(start.elapsed());
    }
    flood.kill().await.unwrap();
    let limit = Duration::from_millis(900);
    assert!(agent < limit && metadata < limit, "{agent:?}, {metadata:?}");
}

#[tokio::test]
async fn idle_metadata_connections_do_not_delay_others() {
    let service = Service::start("ec2").await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(service.address).await.unwrap());
    }
    let asked = timeout(
        Duration::from_secs(2),
        service.get("/latest/meta-data/instance-id"),
    );
    assert_eq!(asked.await.expect("it is delayed").body, "one");
}

/// A request made of good and bad parts.
fn nonsense(random: &mut Random) -> Vec<u8> {
    const METHODS: [&str; 6] = ["GET", "HEAD", "PUT", "POST", "", "G E T"];
    const PARTS: [&str; 14] = [
        "latest",
        "2009-04-04",
        "meta-data",
        "public-keys",
        "0",
        "openssh-key",
        "api/token",
        "..",
        "",
        "%2e%2e",
        "%00",
        "${user-data}",
        "network/interfaces/macs",
        "?a=b&",
    ];
    const HEADERS: [&str; 6] = [
        "X-aws-ec2-metadata-token-ttl-seconds: 99999",
        "X-aws-ec2-metadata-token: 1-2",
        "Content-Length: 18446744073709551616",
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
        "\u{0}: \r",
    ];
    let mut request = format!("{} ", random.pick(&METHODS));
    for _ in 0..random.below(7) {
        request += "/";
        request += *random.pick(&PARTS);
    }
    request += *random.pick(&[" HTTP/1.1\r\n", " HTTP/1.0\r\n", "\r\n", " HTTP/9\r\n"]);
    for _ in 0..random.below(4) {
        request += *random.pick(&HEADERS);
        request += "\r\n";
    }
    let mut request = (request + "\r\n").into_bytes();
    if random.percent(30) {
        for _ in 0..=random.below(4) {
            let at = random.below(request.len());
            request[at] = random.byte();
        }
    }
    if random.percent(10) {
        request.truncate(random.below(request.len()));
    }
    request
}

#[tokio::test]
async fn two_thousand_invalid_metadata_requests_change_nothing() {
    let service = Service::start("ec2").await;
    let seed = Random::fresh_seed();
    let mut random = Random::new(seed);
    let mut answers = 0;
    for number in 0..2000 {
        let request = nonsense(&mut random);
        let answer = exchange(service.address, &request).await;
        if let Some(Answer { status, .. }) = read(&answer) {
            answers += 1;
            assert!(status < 500, "seed {seed}, request {number}: {status}");
        }
    }
    assert!(answers > 500, "{answers} answers");
    let id = service.body("/latest/meta-data/instance-id").await;
    assert_eq!(id, "one");
}
