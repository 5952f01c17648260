//! A host that takes connections and says nothing: the guest goes on, with the data it has.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use harness::{TestVm, eventually, vm::VmOptions};
use tokio::{net::UnixListener, task::JoinSet, time::Instant};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use vsock_agent_client::{Endpoint, protocol::host::HostConnection};

use crate::{
    client_of,
    probe::{self, ask},
    succeed, wait_data,
};

/// The host's port for guests.
const PORT: u32 = 8444;

/// Seconds that the agent waits for data.
const READY_TIMEOUT: u64 = 3;

/// The same, and the time that an emulated machine needs to say so.
const LONGEST_WAIT: Duration = Duration::from_secs(READY_TIMEOUT + 30);

/// A host that takes every connection and holds it. `Drop` lets them go.
struct HungHost {
    taken: Arc<AtomicUsize>,
    /// Held for its `Drop`.
    _task: JoinSet<()>,
}

impl HungHost {
    /// Takes the place of what listens for the VM's guest on the host, if anything does.
    fn start(vm: &TestVm) -> Self {
        let taken = Arc::new(AtomicUsize::new(0));
        let mut task = JoinSet::new();
        match vm.endpoint().parse().unwrap() {
            Endpoint::Hybrid { path, .. } => {
                let socket = PathBuf::from(format!("{}_{PORT}", path.display()));
                let _ = fs::remove_file(&socket);
                let listener = UnixListener::bind(&socket).unwrap();
                let accept = async move || listener.accept().await.unwrap().0;
                task.spawn(hold(accept, Arc::clone(&taken)));
            }
            _ => {
                let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, PORT)).unwrap();
                let accept = async move || listener.accept().await.unwrap().0;
                task.spawn(hold(accept, Arc::clone(&taken)));
            }
        }
        Self { taken, _task: task }
    }

    /// How many connections it has.
    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

async fn hold<S>(accept: impl AsyncFn() -> S, taken: Arc<AtomicUsize>) {
    let mut held = Vec::new();
    loop {
        held.push(accept().await);
        taken.store(held.len(), Ordering::Relaxed);
    }
}

async fn machine(name: &str) -> TestVm {
    let flags = format!("--host vsock:2:{PORT} --metadata ec2 --ready-timeout {READY_TIMEOUT}");
    let options = VmOptions {
        agent_flags: flags,
        ..VmOptions::new(name)
    };
    TestVm::prepare(options).await.unwrap()
}

/// Checks that each socket of the guest that leads to data answers `answers`, at once.
async fn assert_doors(vm: &TestVm, answers: &str) {
    for (socket, request) in [
        ("unix /dev/lxd/sock", "GET /1.0/meta-data"),
        ("unix /dev/lxd/sock", "GET /1.0/config/user.a"),
        (
            "tcp 169.254.169.254 80",
            "GET /latest/meta-data/instance-id",
        ),
    ] {
        let start = Instant::now();
        for exchange in ask(vm, "0", socket, &[request; 5]).await {
            assert!(
                exchange.answer.starts_with(answers),
                "{socket}: {exchange:?}"
            );
        }
        assert!(
            start.elapsed() < LONGEST_WAIT,
            "{socket}: {:?}",
            start.elapsed()
        );
    }
}

#[tokio::test]
async fn guest_with_a_silent_host_boots_without_data() {
    let mut vm = machine("hung").await;
    let host = HungHost::start(&vm);
    vm.boot().await.unwrap();
    let start = Instant::now();
    let log = vm.serial_log();
    let goes_on = async || {
        let log = fs::read(&log).unwrap();
        String::from_utf8_lossy(&log).contains("no instance data in time")
    };
    assert!(
        eventually(LONGEST_WAIT, goes_on).await,
        "{:?}",
        start.elapsed()
    );
    vm.wait_agent().await.unwrap();
    probe::install(&vm).await;
    assert_doors(&vm, "no connection: ").await;
    assert!(host.taken() > 0, "it asked");
}

#[tokio::test]
async fn guest_keeps_its_data_when_the_host_falls_silent() {
    let mut vm = machine("silent").await;
    succeed(vm.cli(["config", "set", vm.name(), "user.a=eins"])).await;
    let serve = vm.serve().unwrap();
    vm.boot().await.unwrap();
    vm.wait_agent().await.unwrap();
    wait_data(&vm).await;
    probe::install(&vm).await;
    assert_doors(&vm, "HTTP/1.1 200 ").await;

    drop(serve);
    let host = HungHost::start(&vm);
    // An agent that is given the address of its host asks for everything again.
    let connection = HostConnection::new(format!("host:{PORT}").parse().unwrap());
    client_of(&vm).set_host(&connection).await.unwrap();
    assert!(eventually(LONGEST_WAIT, async || host.taken() > 0).await);
    assert_doors(&vm, "HTTP/1.1 200 ").await;
}
