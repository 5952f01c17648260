//! True `AF_VSOCK` at both ends: client and agent in one guest, over the kernel's loopback.

use harness::{TestVm, vm::VmOptions};

use crate::{OUR_FAULT, client_files, finish, in_guest, running::Running, succeed};

/// Where the guest keeps what its own client needs.
const IDENTITY: &str = "/tmp/identity";

#[tokio::test]
async fn exec_and_sftp_work_over_af_vsock() {
    let vm = guest_with_a_client("loopback").await;
    // A second agent, which lets the guest itself in; it lives as long as this session.
    let serve = "exec vsock-agent --listen vsock:any:9443 --allow-cid 1";
    let mut agent = Running::start(&vm, serve);
    agent.says("listening").await;

    let cli = format!("agent-cli --identity {IDENTITY}");
    let echo = in_guest(&vm, &format!("{cli} exec vsock:1:9443 -- echo through")).await;
    assert_eq!(echo, "through\n");
    let copy = format!(
        "{cli} push /bin/busybox vsock:1:9443:/tmp/there &&
         {cli} pull vsock:1:9443:/tmp/there /tmp/back &&
         cmp /bin/busybox /tmp/back"
    );
    in_guest(&vm, &copy).await;
}

#[tokio::test]
async fn vsock_port_below_1024_identifies_root() {
    let vm = guest_with_a_client("ports").await;
    let serve = "exec vsock-agent --listen vsock:any:9443 --allow-cid 1";
    let mut agent = Running::start(&vm, serve);
    agent.says("listening").await;
    for (user, is_privileged) in [("0", true), ("65534", false)] {
        in_guest(&vm, &format!("chown -R {user} {IDENTITY}")).await;
        let script = format!("agent-cli --identity {IDENTITY} exec vsock:1:9443 -- true");
        let mut cli = vm.cli(["exec", "--user", user, vm.name(), "--", "sh", "-c"]);
        cli.arg(script);
        succeed(cli).await;
        let said = agent.says("a command ended").await;
        let (_, peer) = said.split_once("vsock:1:").expect(&said);
        let digits = peer.find(|character: char| !character.is_ascii_digit());
        let port: u32 = peer[..digits.unwrap()].parse().unwrap();
        assert_eq!(port < 1024, is_privileged, "user {user}, port {port}");
    }
}

#[tokio::test]
async fn vsock_loopback_connections_from_the_guest_are_refused() {
    let vm = guest_with_a_client("inside").await;
    for user in ["0", "65534"] {
        // A key that is somebody else's would be refused for that.
        in_guest(&vm, &format!("chown -R {user} {IDENTITY}")).await;
        for flags in [&format!("--identity {IDENTITY}"), "--plain"] {
            let script = format!("agent-cli {flags} --connect-timeout 5 exec vsock:1 -- echo in");
            let mut cli = vm.cli(["exec", "--user", user, vm.name(), "--", "sh", "-c"]);
            cli.arg(script);
            let output = finish(cli).await;
            let words = String::from_utf8_lossy(&output.stderr);
            let who = format!("user {user}, {flags}: {output:?}");
            assert_eq!(output.status.code(), OUR_FAULT, "{who}");
            assert!(output.stdout.is_empty(), "{who}");
            // Without TLS the client learns of it only when its first request has no answer.
            let refused = ["cannot connect to vsock:1", "the connection was lost"];
            assert!(
                refused.iter().any(|refusal| words.contains(refusal)),
                "{who}"
            );
        }
    }
}

/// Boots a VM and gives the guest the host's own key, which must not be enough.
async fn guest_with_a_client(name: &str) -> TestVm {
    let vm = TestVm::start(VmOptions::new(name)).await.unwrap();
    in_guest(&vm, &format!("mkdir {IDENTITY}")).await;
    for (file, from) in client_files(vm.identity().unwrap(), &vm) {
        let to = format!("{}:{IDENTITY}/{file}", vm.name());
        succeed(vm.cli(["push", from.to_str().unwrap(), &to])).await;
    }
    vm
}
