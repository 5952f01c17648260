//! Who in the guest can read instance data. All sockets that serve it are open: a program without root
//! reads nothing, and root reads only the data of its own instance.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
};

use harness::{
    TestVm,
    vm::{Serve, VmOptions},
};

use crate::{
    OUR_FAULT, client_files, finish, in_guest,
    probe::{self, Exchange, as_user, ask, ask_once},
    succeed, wait_data,
};

/// In this guest's data, and in another's. In the guest they are looked for by [`PATTERN`], which is
/// not found in the command line that looks.
const SECRET: &str = "geheim-eins";
const OTHERS_SECRET: &str = "geheim-zwei";
const PATTERN: &str = "geheim[-]";

/// A uid without an account in the guest.
const NOBODY: &str = "65534";

/// Paths for commands, files, other instances and the host in the agent's API and in LXD's.
const ELSEWHERE: [&str; 18] = [
    "/1.0/exec",
    "/1.0/sftp",
    "/1.0/operations",
    "/1.0/operations/1/websocket",
    "/1.0/port-forward",
    "/1.0/state",
    "/1.0/metrics",
    "/metrics",
    "/1.0/instances",
    "/1.0/instances/other",
    "/1.0/instances/other/config/user.other",
    "/other/1.0/config/user.other",
    "/1.0/config/user.other",
    "/1.0/config/other/user.other",
    "/1.0/config/..%2f..%2f..%2fother%2fuser.other",
    "/1.0/config/../../other/user.other",
    "/1.0/config/user.other?name=other&instance=other&project=other",
    "/1.0/images/other/export",
];

/// Requests that the metadata services of clouds answer.
const METADATA: [&str; 8] = [
    "GET /",
    "GET /latest/user-data",
    "GET /latest/meta-data/",
    "GET /latest/vendor-data",
    "GET /openstack/latest/user_data",
    "PUT /latest/api/token X-aws-ec2-metadata-token-ttl-seconds: 60",
    "PUT /latest/api/token X-aliyun-ecs-metadata-token-ttl-seconds: 60",
    "GET http://169.254.169.254/latest/user-data",
];

/// A guest with all sockets open, and the host that serves its data.
struct Guest {
    vm: TestVm,
    /// Held for its `Drop`.
    _serve: Serve,
    /// TCP addresses of the metadata services.
    services: &'static [&'static str],
}

impl Guest {
    async fn open(name: &str, presets: &str, services: &'static [&'static str]) -> Self {
        let options = VmOptions {
            agent_flags: format!("--host vsock:2:8444 --cloud-init nocloud --metadata {presets}"),
            ..VmOptions::new(name)
        };
        let mut vm = TestVm::prepare(options).await.unwrap();
        let user_data = vm.scratch().join("user-data");
        fs::write(&user_data, format!("#cloud-config\n# {SECRET}\n")).unwrap();
        let mut set = vm.cli(["config", "set", name, "cloud-init.user-data", "-"]);
        set.stdin(File::open(&user_data).unwrap());
        succeed(set).await;
        succeed(vm.cli(["config", "set", name, &format!("user.own={SECRET}")])).await;

        let socket = vm.scratch().join("other");
        let other = format!("unix:{}", socket.display());
        succeed(vm.cli(["vm", "add", "other", &other, "--plain"])).await;
        let key = format!("user.other={OTHERS_SECRET}");
        succeed(vm.cli(["config", "set", "other", &key])).await;

        let serve = vm.serve().unwrap();
        vm.boot().await.unwrap();
        vm.wait_agent().await.unwrap();
        wait_data(&vm).await;
        probe::install(&vm).await;
        Self {
            vm,
            _serve: serve,
            services,
        }
    }

    fn http_sockets(&self) -> Vec<String> {
        let services = self
            .services
            .iter()
            .map(|address| format!("tcp {address} 80"));
        ["unix /dev/lxd/sock".to_owned()]
            .into_iter()
            .chain(services)
            .collect()
    }

    /// Checks that root can read the data, which the other checks rely on.
    async fn root_reads_the_data(&self) {
        let own = "GET /1.0/config/user.own";
        let exchange = ask_once(&self.vm, "0", "unix /dev/lxd/sock", own).await;
        assert!(exchange.answer.ends_with(SECRET), "{exchange:?}");
        for address in self.services {
            let exchanges = ask(&self.vm, "0", &format!("tcp {address} 80"), &METADATA).await;
            let mut answers = exchanges.iter().map(|exchange| &exchange.answer);
            assert!(
                answers.any(|answer| answer.contains(SECRET)),
                "{exchanges:?}"
            );
        }
        let found = as_user(&self.vm, "0", &search_files()).await;
        assert!(
            found.contains("/var/lib/cloud/seed/nocloud/user-data"),
            "{found}"
        );
    }

    async fn nobody_reads_the_data(&self) {
        let vm = &self.vm;
        for socket in self.http_sockets() {
            let own = ["GET /1.0/config/user.own", "GET /1.0/meta-data"];
            let requests = [&METADATA[..], &own].concat();
            for exchange in ask(vm, NOBODY, &socket, &requests).await {
                let is_refused = exchange.answer == "no connection: Permission denied"
                    || exchange.answer.starts_with("HTTP/1.1 403 ");
                assert!(is_refused && !has_data(&exchange), "{socket}: {exchange:?}");
                assert!(!exchange.answer.contains("token"), "{socket}: {exchange:?}");
            }
        }
        // The host's port: open to every user of the guest, and closed to who has no certificate.
        for exchange in ask(
            vm,
            NOBODY,
            "vsock 2 8444",
            &["GET /1.0", "GET /1.0/meta-data"],
        )
        .await
        {
            assert!(
                exchange.status().is_none() && !has_data(&exchange),
                "{exchange:?}"
            );
        }
        // Not even an error from the agent's own port.
        for exchange in ask(vm, NOBODY, "vsock 1 8443", &["GET /1.0", "POST /1.0/exec"]).await {
            assert_eq!(exchange.answer, "", "{exchange:?}");
        }
        let found = as_user(vm, NOBODY, &search_files()).await;
        assert_eq!(found, "", "files that everybody can read");
        let keys = "cat /etc/vsock-agent/* /proc/$(pidof vsock-agent)/mem 2>/dev/null | wc -c";
        assert_eq!(as_user(vm, NOBODY, keys).await, "0\n");
    }

    /// What listens in the guest is what the tests above exchange at.
    async fn there_are_no_other_doors(&self) {
        let vm = &self.vm;
        // State 0A is LISTEN; addresses are words of this processor (`proc(5)`).
        // The kernel chose the ports: those that are asked stay the guest's.
        let tcp = "awk '$4 == \"0A\" {sub(\":0050$\", \" taken\", $2); sub(\":.*\", \"\", $2); print $2}' \
                   /proc/net/tcp /proc/net/tcp6 | sort";
        let mut services: Vec<String> = self
            .services
            .iter()
            .map(|address| {
                let bytes = address.parse::<Ipv4Addr>().unwrap().octets();
                format!("{:08X}\n", u32::from_le_bytes(bytes))
            })
            .collect();
        services.sort();
        assert_eq!(in_guest(vm, tcp).await, services.concat());
        let udp =
            "cat /proc/net/udp /proc/net/udp6 /proc/net/raw /proc/net/raw6 | grep -vc sl || true";
        assert_eq!(in_guest(vm, udp).await, "0\n");
        // Flag 0x10000 is that it listens (`__SO_ACCEPTCON`); an abstract one has @ for a path.
        // The agent binds a socket in a directory that it has open.
        let plain = "sub(\"^/proc/self/fd/[0-9]+/\", \"open directory/\", $8)";
        let unix = format!("awk '$4 == \"00010000\" {{{plain}; print $8}}' /proc/net/unix");
        assert_eq!(in_guest(vm, &unix).await, "open directory/socket\n");
        let named = format!("awk 'NR > 1 && $8 != \"\" {{{plain}; print $8}}' /proc/net/unix");
        for name in in_guest(vm, &named).await.lines() {
            assert_eq!(name, "open directory/socket");
        }
        let ports = as_user(vm, NOBODY, &probe::at("scan 1 1 10000")).await;
        assert_eq!(ports, "8443\n");
    }

    async fn root_gets_no_further(&self) {
        let methods = ["GET", "POST", "PUT", "DELETE"];
        let requests: Vec<String> = ELSEWHERE
            .iter()
            .flat_map(|path| methods.map(|method| format!("{method} {path}")))
            .collect();
        let requests: Vec<&str> = requests.iter().map(String::as_str).collect();
        for socket in self.http_sockets() {
            for exchange in ask(&self.vm, "0", &socket, &requests).await {
                // No key of the instance, whose paths have other methods; or images, which are refused.
                let refused = matches!(exchange.status(), Some(400 | 403 | 404 | 405));
                assert!(refused, "{socket}: {exchange:?}");
                assert!(
                    !exchange.answer.contains(OTHERS_SECRET),
                    "{socket}: {exchange:?}"
                );
                let leads_to_agent =
                    exchange.request.contains("/exec") || exchange.request.contains("/sftp");
                assert!(
                    !leads_to_agent || exchange.status() == Some(404),
                    "{socket}: {exchange:?}"
                );
            }
        }
    }

    /// The guest's root has the agent's certificate, and the host knows it by that.
    async fn the_host_runs_nothing_for_root(&self) {
        let vm = &self.vm;
        let identity =
            "mkdir -p /root/id && cd /etc/vsock-agent && cp agent.crt /root/id/client.crt
             cp agent.key /root/id/client.key && cp server.crt /root/id/agent.crt";
        in_guest(vm, identity).await;
        let cli = async |command: &str| {
            let flags = "--identity /root/id --connect-timeout 10";
            let script = format!("agent-cli {flags} {command} 2>&1; echo \"status $?\"");
            as_user(vm, "0", &script).await
        };
        let info = cli("info vsock:2:8444").await;
        assert!(info.ends_with("status 0\n"), "it is let in: {info}");
        for command in ["exec vsock:2:8444 -- id", "ls vsock:2:8444:/"] {
            let said = cli(command).await;
            let no = said.contains("(404)") && said.ends_with("\nstatus 125\n");
            assert!(no, "{command}: {said}");
        }
    }

    /// With the host's own key, as if it had got into the wrong hands.
    async fn the_host_tells_nobody_with_another_certificate(&self) {
        let vm = &self.vm;
        in_guest(vm, "mkdir -p /tmp/id").await;
        let [certificate, key, _] = client_files(vm.identity().unwrap(), vm);
        for (from, name) in [
            (&certificate.1, "client.crt"),
            (&key.1, "client.key"),
            // It believes the host, so that the host has to refuse it.
            (&certificate.1, "agent.crt"),
        ] {
            let to = format!("{}:/tmp/id/{name}", vm.name());
            succeed(vm.cli(["push", from.to_str().unwrap(), &to])).await;
        }
        in_guest(vm, &format!("chown -R {NOBODY} /tmp/id")).await;
        let mut exec = vm.cli(["exec", "--user", NOBODY, vm.name(), "--", "sh", "-c"]);
        exec.arg("agent-cli --identity /tmp/id --connect-timeout 10 info vsock:2:8444");
        let output = finish(exec).await;
        assert_eq!(output.status.code(), OUR_FAULT, "{output:?}");
        let words = String::from_utf8_lossy(&output.stderr);
        // The device may end the connection before the host's alert is read.
        let refused = ["refused this identity", "the connection was lost"];
        assert!(refused.iter().any(|no| words.contains(no)), "{words}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[tokio::test]
async fn only_root_reads_instance_data() {
    let services = &["169.254.169.254", "100.100.100.200"];
    let house = Guest::open("sockets", "ec2,aliyun", services).await;
    house.root_reads_the_data().await;
    house.nobody_reads_the_data().await;
    house.there_are_no_other_doors().await;
    house.root_gets_no_further().await;
    house.the_host_runs_nothing_for_root().await;
    house.the_host_tells_nobody_with_another_certificate().await;
}

#[tokio::test]
async fn only_root_reads_instance_data_of_openstacks_service() {
    let house = Guest::open("sockets-openstack", "openstack", &["169.254.169.254"]).await;
    house.root_reads_the_data().await;
    house.nobody_reads_the_data().await;
    house.there_are_no_other_doors().await;
    house.root_gets_no_further().await;
}

/// Looks through every file there is, for as much as the user may see: what processes show of
/// themselves too.
fn search_files() -> String {
    format!(
        "mounts='/ /dev /dev/shm /run /tmp'
         find $mounts -xdev -type f -exec grep -l '{PATTERN}' {{}} + 2>/dev/null
         grep -l '{PATTERN}' /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null
         true"
    )
}

fn has_data(exchange: &Exchange) -> bool {
    [SECRET, OTHERS_SECRET]
        .iter()
        .any(|secret| exchange.answer.contains(secret))
}
