//! Other people's agents in the guest, driven by our command line: LXD's 5.0.2 and Incus's 6.0.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Output, Stdio},
};

use harness::{
    TestVm,
    vm::{StockAgent, VmOptions},
};
use tokio::process::Child;

use crate::{assert_same_content, client_files, files, finish, in_guest, random_file};

/// Where our own agent listens in that guest: the usual port is the other's.
const OUR_PORT: u32 = 9443;

/// A guest in which somebody else's agent serves the usual port.
struct Stock {
    vm: TestVm,
    identity: PathBuf,
    /// The session of ours that the other agent runs in.
    _agent: Child,
}

impl Stock {
    async fn start(kind: StockAgent, name: &str) -> Self {
        let options = VmOptions {
            port: OUR_PORT,
            memory_mib: 1024,
            ..VmOptions::new(name)
        };
        let (vm, binary) = tokio::join!(TestVm::start(options), kind.find());
        let (vm, binary) = (vm.unwrap(), binary.unwrap());
        let inside = format!("{name}:/run/stock-agent");
        let pushed = finish(vm.cli(["push", binary.to_str().unwrap(), &inside])).await;
        assert!(pushed.status.success(), "{pushed:?}");
        in_guest(
            &vm,
            "chmod 755 /run/stock-agent && cp -r /etc/vsock-agent /run/stock",
        )
        .await;
        let agent = vm
            .exec(["sh", "-c", "cd /run/stock && exec /run/stock-agent"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let identity = vm.scratch().join("flat");
        fs::create_dir(&identity).unwrap();
        for (file, path) in client_files(vm.identity().unwrap(), &vm) {
            fs::copy(path, identity.join(file)).unwrap();
        }
        Self {
            vm,
            identity,
            _agent: agent,
        }
    }

    /// A command of ours about the other agent; `STOCK` in `words` stands for its endpoint.
    async fn cli(&self, words: &[&str], input: Option<&PathBuf>) -> Output {
        let endpoint = self.vm.endpoint_at(8443);
        let words = words.iter().map(|word| word.replace("STOCK", &endpoint));
        let mut cli = self.vm.cli(["--identity"]);
        cli.arg(&self.identity).args(words);
        if let Some(input) = input {
            cli.stdin(File::open(input).unwrap());
        }
        finish(cli).await
    }

    async fn check(&self, server: &str) {
        let info = self.cli(&["info", "STOCK"], None).await;
        let words = String::from_utf8_lossy(&info.stdout).into_owned();
        assert!(info.status.success() && words.contains(server), "{info:?}");
        self.check_exec().await;
        self.check_files().await;
    }

    async fn check_exec(&self) {
        for (script, code) in [
            ("echo out; echo err >&2", 0),
            ("echo out; echo err >&2; exit 7", 7),
        ] {
            let output = self
                .cli(&["exec", "STOCK", "--", "sh", "-c", script], None)
                .await;
            assert_eq!(output.status.code(), Some(code), "{output:?}");
            assert_eq!(
                (&output.stdout[..], &output.stderr[..]),
                (&b"out\n"[..], &b"err\n"[..])
            );
        }
        let output = self.cli(&["exec", "STOCK", "--", "/no/such"], None).await;
        assert_eq!(output.status.code(), Some(127), "{output:?}");
        // LXD 5.0.2 loses what a terminal still has when its command ends, on a slow guest (its issue
        // 11422), so this command lives a little longer than its output.
        let words = ["exec", "-t", "STOCK", "--", "sh", "-c", "tty; sleep 1"];
        let output = self.cli(&words, None).await;
        assert!(output.stdout.starts_with(b"/dev/pts/"), "{output:?}");
        let words = [
            "exec", "--user", "65534", "--env", "A=b c", "--cwd", "/tmp", "STOCK", "--",
        ];
        let script = "id -u; echo $A; pwd";
        let output = self
            .cli(&[&words[..], &["sh", "-c", script]].concat(), None)
            .await;
        assert_eq!(output.stdout, b"65534\nb c\n/tmp\n", "{output:?}");
        let input = random_file(&self.vm, "stock-input", 5_000_000);
        let output = self
            .cli(&["exec", "STOCK", "--", "cat"], Some(&input))
            .await;
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            output.stdout == fs::read(&input).unwrap(),
            "{} bytes",
            output.stdout.len()
        );
    }

    async fn check_files(&self) {
        let there = random_file(&self.vm, "stock-there", 10_000_000);
        let back = self.vm.scratch().join("stock-back");
        for words in [
            ["push", there.to_str().unwrap(), "STOCK:/tmp/file"],
            ["pull", "STOCK:/tmp/file", back.to_str().unwrap()],
        ] {
            let output = self.cli(&words, None).await;
            assert!(output.status.success(), "{output:?}");
        }
        assert_same_content(&there, &back);
        let [there, back] = ["odd", "odd-back"].map(|name| self.vm.scratch().join(name));
        files::plant(&there);
        for words in [
            ["push", "-r", there.to_str().unwrap(), "STOCK:/tmp/odd"],
            ["pull", "-r", "STOCK:/tmp/odd", back.to_str().unwrap()],
        ] {
            let output = self.cli(&words, None).await;
            assert!(output.status.success(), "{output:?}");
        }
        assert!(
            files::tree(&there) == files::tree(&back),
            "the trees differ"
        );
        let output = self.cli(&["ls", "STOCK:/tmp"], None).await;
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("file"),
            "{output:?}"
        );
    }
}

#[tokio::test]
async fn client_drives_lxd_agent_5_0_2() {
    Stock::start(StockAgent::Lxd, "stock-lxd")
        .await
        .check("lxd-agent")
        .await;
}

#[tokio::test]
async fn client_drives_incus_agent_6_0() {
    Stock::start(StockAgent::Incus, "stock-incus")
        .await
        .check("incus-agent")
        .await;
}
