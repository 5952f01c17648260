//! `sftp` without `--stdio`: a plain prompt. Words are separated by blanks; quotes keep them in.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use bytes::BytesMut;
use vsock_agent_client::{Client, RemotePath, Sftp, protocol::sftp::Attributes};

use super::{
    copy::{pull_one, push_one},
    list::{TYPE_DIRECTORY, entries, file_type, print_long, shown},
};
use crate::{output, stdio};

const HELP: &str = "\
get REMOTE [LOCAL]   copy a file out of the guest
put LOCAL [REMOTE]   copy a file into the guest
ls [PATH]            list a directory
cd [PATH]            change the guest's directory
pwd                  show the guest's directory
mkdir PATH           create a directory
rm PATH              remove a file
rmdir PATH           remove an empty directory
help                 show this
quit                 leave";

/// Longest line, in bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// Reads commands and does them, to the end of stdin. Without a terminal the first that fails
/// ends it, so that a script does not go on after it.
pub(crate) async fn run(client: &Client) -> anyhow::Result<u8> {
    let sftp = client.sftp().await?;
    let directory = sftp.realpath(".").await?;
    let mut session = Session { sftp, directory };
    let person = io::stdin().is_terminal() && io::stdout().is_terminal();
    let mut lines = Lines::start()?;
    loop {
        if person {
            output::prompt("sftp> ")?;
        }
        let Some(line) = lines.next().await? else {
            return Ok(0);
        };
        let words = match words(&line) {
            Ok(words) if words.is_empty() => continue,
            Ok(words) => words,
            Err(error) if person => {
                output::complain(&error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        match session.obey(&words).await {
            Ok(true) => {}
            Ok(false) => return Ok(0),
            Err(error) if person && !is_over(&error) => {
                output::complain(&output::escape(format!("{error:#}").as_bytes()));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether nothing more can be done after this.
fn is_over(error: &anyhow::Error) -> bool {
    use vsock_agent_client::ClientError;
    error.chain().any(|cause| {
        matches!(
            cause.downcast_ref::<ClientError>(),
            Some(
                ClientError::ConnectionLost { .. }
                    | ClientError::Protocol { .. }
                    | ClientError::Silent { .. }
            )
        )
    })
}

#[derive(Debug)]
struct Session {
    sftp: Sftp,
    directory: RemotePath,
}

impl Session {
    /// Does one command; false to leave.
    async fn obey(&mut self, words: &[Vec<u8>]) -> anyhow::Result<bool> {
        let (command, arguments) = words.split_first().context("no command")?;
        match (&command[..], arguments) {
            (b"quit" | b"exit" | b"bye", []) => return Ok(false),
            (b"help" | b"?", []) => output::line(HELP)?,
            (b"pwd", []) => output::line(&output::escape(self.directory.as_bytes()))?,
            (b"cd", []) => self.directory = self.sftp.realpath(".").await?,
            (b"cd", [path]) => self.enter(path).await?,
            (b"ls", []) => print_long(&entries(&self.sftp, &self.directory).await?)?,
            (b"ls", [path]) => print_long(&entries(&self.sftp, &self.resolve(path)).await?)?,
            (b"mkdir", [path]) => {
                let path = self.resolve(path);
                self.sftp.mkdir(path, Attributes::default()).await?;
            }
            (b"rm", [path]) => self.sftp.remove(self.resolve(path)).await?,
            (b"rmdir", [path]) => self.sftp.rmdir(self.resolve(path)).await?,
            (b"get", [remote]) => self.get(remote, None).await?,
            (b"get", [remote, local]) => self.get(remote, Some(local)).await?,
            (b"put", [local]) => self.put(local, None).await?,
            (b"put", [local, remote]) => self.put(local, Some(remote)).await?,
            (command, _) => bail!(
                "{}: no such command, or not with these words; try help",
                output::escape(command)
            ),
        }
        Ok(true)
    }

    fn resolve(&self, path: &[u8]) -> RemotePath {
        match path.starts_with(b"/") {
            true => RemotePath::from(path),
            false => self.directory.join(path),
        }
    }

    async fn enter(&mut self, path: &[u8]) -> anyhow::Result<()> {
        let path = self.sftp.realpath(self.resolve(path)).await?;
        match file_type(&self.sftp.stat(&path).await?) {
            Some(TYPE_DIRECTORY) | None => self.directory = path,
            Some(_) => bail!("{}: not a directory", output::escape(path.as_bytes())),
        }
        Ok(())
    }

    async fn get(&self, remote: &[u8], local: Option<&Vec<u8>>) -> anyhow::Result<()> {
        let remote = self.resolve(remote);
        let name = remote.file_name().context("it has no name")?;
        let target = match local {
            None => PathBuf::from(name),
            Some(local) => {
                let local = PathBuf::from(OsString::from_vec(local.clone()));
                match local.is_dir() {
                    true => local.join(name),
                    false => local,
                }
            }
        };
        pull_one(&self.sftp, &remote, &target)
            .await
            .with_context(|| format!("cannot get {}", output::escape(remote.as_bytes())))
    }

    async fn put(&self, local: &[u8], remote: Option<&Vec<u8>>) -> anyhow::Result<()> {
        let local = OsString::from_vec(local.to_vec());
        let name = Path::new(&local).file_name().context("it has no name")?;
        let mut target = match remote {
            None => self.directory.clone(),
            Some(remote) => self.resolve(remote),
        };
        if let Ok(attributes) = self.sftp.stat(&target).await
            && file_type(&attributes) == Some(TYPE_DIRECTORY)
        {
            target = target.join(name.as_bytes());
        }
        push_one(&self.sftp, &local, &target)
            .await
            .with_context(|| format!("cannot put {}", shown(&local)))
    }
}

/// Cuts a line into words. A backslash takes the next byte as it is, except in single quotes.
fn words(line: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (Some(mark), byte) if byte == mark => quote = None,
            (None | Some(b'"'), b'\\') => {
                let next = bytes.next().context("a backslash at the end")?;
                word.get_or_insert_default().push(next);
            }
            (None, b'"' | b'\'') => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (None, b' ' | b'\t' | b'\r') => words.extend(word.take()),
            (_, byte) => word.get_or_insert_default().push(byte),
        }
    }
    if quote.is_some() {
        bail!("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

/// Stdin, line by line.
#[derive(Debug)]
struct Lines {
    pieces: tokio::sync::mpsc::Receiver<io::Result<bytes::Bytes>>,
    buffer: BytesMut,
}

impl Lines {
    fn start() -> io::Result<Self> {
        Ok(Self {
            pieces: stdio::stdin()?,
            buffer: BytesMut::new(),
        })
    }

    /// The next line without its end; the last one needs none.
    async fn next(&mut self) -> anyhow::Result<Option<BytesMut>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(end + 1);
                line.truncate(end);
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                bail!("a line of more than {MAX_LINE_BYTES} bytes");
            }
            match self.pieces.recv().await {
                Some(piece) => self.buffer.extend_from_slice(&piece?),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Ok(Some(self.buffer.split())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(line: &str) -> Vec<String> {
        let words = words(line.as_bytes()).unwrap();
        words
            .into_iter()
            .map(|word| String::from_utf8(word).unwrap())
            .collect()
    }

    #[test]
    fn words_are_cut_as_a_shell_cuts_them() {
        assert_eq!(cut("get  a b\t c"), ["get", "a", "b", "c"]);
        assert_eq!(
            cut(r#"get "a b" 'c"d' e\ f"#),
            ["get", "a b", "c\"d", "e f"]
        );
        assert_eq!(cut(r#"put "" '\'"#), ["put", "", "\\"]);
        assert_eq!(cut("  "), Vec::<String>::new());
    }

    #[test]
    fn a_line_that_is_not_finished_is_refused() {
        for line in ["get \"a", "get 'a", "get a\\"] {
            words(line.as_bytes()).unwrap_err();
        }
    }
}
