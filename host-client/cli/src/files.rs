//! Files in a guest: `sftp`, `push`, `pull`, `ls`, `cat`, `rm`, `mkdir`, `stat` and `edit`.

mod attributes;
mod bridge;
mod cat;
mod copy;
mod edit;
mod interrupt;
mod list;
mod listing;
mod mkdir;
mod operands;
mod owners;
mod prompt;
mod remove;
mod stat;

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use anyhow::{Context, bail};
use vsock_agent_client::RemotePath;

pub(crate) use self::{
    cat::cat,
    copy::{pull, push},
    edit::edit,
    list::ls,
    mkdir::mkdir,
    remove::rm,
    stat::stat,
};
use crate::{args::SftpArgs, config::Settings, output};

/// `agent-cli sftp`.
pub(crate) async fn sftp(settings: &Settings, args: SftpArgs) -> anyhow::Result<u8> {
    let client = settings.client(&args.vm)?;
    if args.stdio {
        return bridge::run(client.raw_sftp().await?).await;
    }
    // Before connecting, so that a missing batch file is reported at once.
    let input = prompt::Input::open(args.batch.as_deref())?;
    prompt::run(client.sftp_with(&args.options()).await?, input).await
}

/// Escapes a path of the guest.
fn shown(path: &RemotePath) -> String {
    output::escape(path.as_bytes())
}

const ENDPOINT_PREFIXES: [&[u8]; 3] = [b"vsock:", b"hybrid:", b"unix:"];

/// A path in a guest: `VM:/PATH`.
#[derive(Debug, PartialEq, Eq)]
struct GuestPath {
    vm: String,
    path: RemotePath,
}

impl GuestPath {
    /// Splits at the first `:/` after the prefix of an endpoint. Later ones belong to the path.
    fn parse(text: &OsStr) -> anyhow::Result<Self> {
        let bytes = text.as_bytes();
        let mut prefixes = ENDPOINT_PREFIXES.iter();
        let prefix = prefixes.find(|prefix| bytes.starts_with(prefix));
        let start = prefix.map_or(0, |prefix| prefix.len());
        let mut pairs = bytes[start..].windows(2);
        let at = match pairs.position(|pair| pair == b":/") {
            Some(at) if at > 0 => start + at,
            _ => bail!("{text:?} is not VM:/PATH with an absolute path"),
        };
        let vm = std::str::from_utf8(&bytes[..at])
            .with_context(|| format!("the virtual machine in {text:?} is not UTF-8"))?;
        Ok(Self {
            vm: vm.to_owned(),
            path: RemotePath::from(&bytes[at + 1..]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(String, Vec<u8>)> {
        let target = GuestPath::parse(OsStr::new(text)).ok()?;
        Some((target.vm, target.path.as_bytes().to_vec()))
    }

    fn split(vm: &str, path: &str) -> Option<(String, Vec<u8>)> {
        Some((vm.to_owned(), path.as_bytes().to_vec()))
    }

    #[test]
    fn a_guest_path_is_split_at_the_first_colon_and_slash_after_the_machine() {
        assert_eq!(parse("demo:/etc/x"), split("demo", "/etc/x"));
        assert_eq!(parse("vsock:3:/etc"), split("vsock:3", "/etc"));
        assert_eq!(
            parse("unix:/run/a.sock:/etc"),
            split("unix:/run/a.sock", "/etc")
        );
        assert_eq!(parse("demo:/a/c:/b"), split("demo", "/a/c:/b"));
        assert_eq!(parse("vsock:3:/a:/b"), split("vsock:3", "/a:/b"));
        assert_eq!(
            parse("unix:/run/a.sock:/a/c:/b"),
            split("unix:/run/a.sock", "/a/c:/b")
        );
        assert_eq!(
            parse("hybrid:/v.sock:52:/"),
            split("hybrid:/v.sock:52", "/")
        );
    }

    #[test]
    fn a_guest_path_needs_a_machine_and_an_absolute_path() {
        for text in [
            "demo",
            "demo:file",
            "/etc",
            ":/etc",
            "unix:/run/a.sock",
            "vsock:3",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_guest_path_need_not_be_utf8() {
        let target = GuestPath::parse(OsStr::from_bytes(b"demo:/\xff\n")).unwrap();
        assert_eq!(target.path.as_bytes(), b"/\xff\n");
    }
}
