//! Expands wildcards in words to matching paths, in the guest or on the host.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use vsock_agent_client::{RemotePath, Sftp, protocol::sftp::FileType};

use super::{
    glob::{Component, PathPattern},
    line::Word,
};
use crate::{
    files::{
        listing::{Listing, MAX_HELD_BYTES},
        operands::is_over,
    },
    output::escape_path,
};

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: Vec<u8>,
    /// True for a directory, a symbolic link, and an unknown type.
    pub(super) may_be_directory: bool,
}

/// A file system with a current directory, to which paths are relative.
pub(super) trait Tree {
    /// The entries of a directory whose names `matches` accepts. An empty path is the current directory.
    async fn list(
        &self,
        directory: &[u8],
        matches: impl Fn(&[u8]) -> bool,
    ) -> anyhow::Result<Vec<Found>>;
    /// Whether a path exists. Symbolic links are not followed.
    async fn exists(&self, path: &[u8]) -> bool;
}

/// Expands a word to the sorted paths that match. A word without wildcards is returned as a path.
pub(super) async fn expand(tree: &impl Tree, word: &Word) -> anyhow::Result<Vec<Vec<u8>>> {
    let Some(pattern) = PathPattern::new(word) else {
        return Ok(vec![word.bytes()]);
    };
    let start: &[u8] = if pattern.is_absolute { b"/" } else { b"" };
    let mut paths = vec![start.to_vec()];
    let mut is_first = true;
    let count = pattern.components.len();
    for (at, component) in pattern.components.iter().enumerate() {
        let wants_directory = at + 1 < count || pattern.wants_directory;
        let (mut next, mut bytes) = (Vec::new(), 0);
        for path in paths {
            match component {
                Component::Name(name) => {
                    let path = join(&path, name);
                    if is_first || tree.exists(&path).await {
                        next.push(path);
                    }
                }
                Component::Pattern(pattern) => {
                    let found = match tree.list(&path, |name| pattern.matches(name)).await {
                        Ok(found) => found,
                        // A match may be a file, or a directory without permission.
                        Err(error) if is_first || is_over(&error) => return Err(error),
                        Err(_) => continue,
                    };
                    for found in found {
                        if wants_directory && !found.may_be_directory {
                            continue;
                        }
                        let path = join(&path, &found.name);
                        bytes += size_of::<Vec<u8>>() + path.len();
                        if bytes > MAX_HELD_BYTES {
                            bail!("too many paths match {word}");
                        }
                        next.push(path);
                    }
                }
            }
        }
        is_first &= matches!(component, Component::Name(_));
        paths = next;
    }
    if paths.is_empty() {
        bail!("nothing matches {word}");
    }
    paths.sort_unstable();
    Ok(paths)
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !matches!(path.last(), None | Some(b'/')) {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The file system of a guest.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) sftp: &'a Sftp,
    pub(super) directory: &'a RemotePath,
}

/// Resolves a path relative to `directory`. An empty path is the directory itself.
pub(super) fn below(directory: &RemotePath, path: &[u8]) -> RemotePath {
    match path {
        [] => directory.clone(),
        [b'/', ..] => RemotePath::from(path),
        _ => directory.join(path),
    }
}

impl Tree for Guest<'_> {
    async fn list(
        &self,
        directory: &[u8],
        matches: impl Fn(&[u8]) -> bool,
    ) -> anyhow::Result<Vec<Found>> {
        let path = below(self.directory, directory);
        let mut listing = Listing::open(self.sftp, &path).await?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(entry) = listing.next().await? {
            if !matches(&entry.name) {
                continue;
            }
            bytes += size_of::<Found>() + entry.name.len();
            if bytes > MAX_HELD_BYTES {
                bail!("too many names match");
            }
            found.push(Found {
                may_be_directory: matches!(
                    entry.attributes.file_type(),
                    None | Some(FileType::Directory | FileType::Link)
                ),
                name: entry.name,
            });
        }
        Ok(found)
    }

    async fn exists(&self, path: &[u8]) -> bool {
        self.sftp.lstat(below(self.directory, path)).await.is_ok()
    }
}

/// The file system of the host, with the current directory of this process.
#[derive(Debug)]
pub(super) struct Host;

impl Tree for Host {
    async fn list(
        &self,
        directory: &[u8],
        matches: impl Fn(&[u8]) -> bool,
    ) -> anyhow::Result<Vec<Found>> {
        let path = match directory {
            [] => Path::new("."),
            path => Path::new(OsStr::from_bytes(path)),
        };
        let found = read_directory(path);
        let mut found = found.with_context(|| format!("cannot list {}", escape_path(path)))?;
        found.retain(|found| matches(&found.name));
        Ok(found)
    }

    async fn exists(&self, path: &[u8]) -> bool {
        fs::symlink_metadata(OsStr::from_bytes(path)).is_ok()
    }
}

fn read_directory(path: &Path) -> anyhow::Result<Vec<Found>> {
    let found = fs::read_dir(path)?.map(|entry| {
        let entry = entry?;
        let kind = entry.file_type()?;
        Ok(Found {
            name: entry.file_name().as_bytes().to_vec(),
            may_be_directory: kind.is_dir() || kind.is_symlink(),
        })
    });
    Ok(found.collect::<io::Result<_>>()?)
}

/// A path of the host. A leading `~` is the user's home directory.
pub(super) fn local(word: &Word) -> PathBuf {
    let bytes = word.bytes();
    let rest = bytes.get(1..).unwrap_or_default();
    match std::env::home_dir().filter(|_| word.is_home()) {
        Some(home) if rest.is_empty() => home,
        Some(home) if rest.starts_with(b"/") => home.join(OsStr::from_bytes(&rest[1..])),
        _ => PathBuf::from(OsStr::from_bytes(&bytes)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::line::words, *};

    /// Directories with their names; those that are directories end with a slash.
    struct Fake(BTreeMap<&'static str, &'static [&'static str]>);

    impl Tree for Fake {
        async fn list(
            &self,
            directory: &[u8],
            fits: impl Fn(&[u8]) -> bool,
        ) -> anyhow::Result<Vec<Found>> {
            let path = std::str::from_utf8(directory).unwrap();
            let names = self.0.get(path).context("no such directory")?;
            let found = names.iter().map(|name| Found {
                name: name.trim_end_matches('/').into(),
                may_be_directory: name.ends_with('/'),
            });
            Ok(found.filter(|found| fits(&found.name)).collect())
        }

        async fn exists(&self, path: &[u8]) -> bool {
            let path = std::str::from_utf8(path).unwrap();
            let (directory, name) = path.rsplit_once('/').unwrap();
            self.0
                .get(directory)
                .is_some_and(|names| names.contains(&name))
        }
    }

    async fn matching(line: &str) -> Option<Vec<String>> {
        let tree = Fake(BTreeMap::from([
            ("", &["b.txt", "a.txt", ".c.txt", "d/", "e/", "f"][..]),
            ("d", &["x", "y"]),
            ("e", &["x"]),
            ("/", &["etc/"]),
            ("/etc", &["passwd"]),
        ]));
        let word = words(line.as_bytes()).unwrap().remove(0);
        let paths = expand(&tree, &word).await.ok()?;
        Some(
            paths
                .into_iter()
                .map(|path| String::from_utf8(path).unwrap())
                .collect(),
        )
    }

    #[tokio::test]
    async fn wildcards_expand_to_sorted_matching_paths() {
        for (line, paths) in [
            ("*.txt", &["a.txt", "b.txt"][..]),
            (".*", &[".c.txt"]),
            ("*/x", &["d/x", "e/x"]),
            ("d/*", &["d/x", "d/y"]),
            ("*/", &["d", "e"]),
            ("/e*/p*", &["/etc/passwd"]),
            ("nothing", &["nothing"]),
            (r"\*", &["*"]),
        ] {
            assert_eq!(matching(line).await.unwrap(), paths, "{line}");
        }
    }

    #[tokio::test]
    async fn wildcards_without_a_match_are_an_error() {
        for line in ["*.c", "g/*", "*/z", "[!a-z]"] {
            assert_eq!(matching(line).await, None, "{line}");
        }
    }
}
