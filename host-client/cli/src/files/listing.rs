//! Reads, sorts and formats directories of a guest.

use std::io;

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};
use vsock_agent_client::{
    DirectoryReader, RemotePath, Sftp,
    protocol::sftp::{Attributes, FileType, mode_text},
};

use super::{
    attributes::{self, is_directory, is_link, size_text, time_text},
    owners::Owners,
    shown,
};
use crate::output::{self, Columns};

/// Most entries of a listing. A guest could send names for ever.
pub(super) const MAX_ENTRIES: usize = 1_000_000;

/// Most memory for the entries of a directory, in bytes.
pub(super) const MAX_HELD_BYTES: usize = 12 * 1024 * 1024;

/// Most entries in memory with the targets of links. A target can be as long as a path.
pub(super) const LINKS_HELD: usize = 1024;

/// Longest target of a link that is shown (`PATH_MAX`).
const MAX_TARGET_BYTES: usize = 4096;

/// Concurrent READLINK requests.
const LINKS_AT_ONCE: usize = 32;

/// The format of a listing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct View {
    /// Includes names that start with a dot.
    pub(super) all: bool,
    /// Shows modes, owners, sizes and times.
    pub(super) long: bool,
    /// Shows owners as numbers.
    pub(super) numeric: bool,
    /// Shows sizes with units.
    pub(super) human: bool,
    /// Prints one name per line, also on a terminal.
    pub(super) single: bool,
    /// Reverses the order.
    pub(super) reverse: bool,
    pub(super) order: Order,
}

/// The order of a listing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// By the bytes of the names.
    #[default]
    Name,
    /// Largest first.
    Size,
    /// Newest first.
    Time,
    /// That of the server.
    None,
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: Vec<u8>,
    pub(super) attributes: Attributes,
    /// The target of a link, after [`read_links`].
    pub(super) target: Option<Vec<u8>>,
}

/// The kind of a path.
#[derive(Debug)]
pub(super) enum Content {
    /// A file, or anything else without entries.
    File(Listed),
    /// A directory, or a link to one.
    Directory,
}

/// Determines the kind of a path.
pub(super) async fn content(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<Content> {
    let attributes = match sftp.stat(path).await {
        // A dangling link is listed itself.
        Err(error) if error.is_not_found() => sftp.lstat(path).await,
        other => other,
    };
    let attributes = attributes.with_context(|| format!("cannot list {}", shown(path)))?;
    match attributes.file_type() {
        Some(FileType::Directory) | None => Ok(Content::Directory),
        Some(_) => entry(sftp, path).await.map(Content::File),
    }
}

/// A path itself as an entry of a listing.
pub(super) async fn entry(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<Listed> {
    let attributes = sftp.lstat(path).await;
    Ok(Listed {
        name: path.as_bytes().to_vec(),
        attributes: attributes.with_context(|| format!("cannot list {}", shown(path)))?,
        target: None,
    })
}

/// A directory that is being listed.
#[derive(Debug)]
pub(super) struct Listing {
    path: RemotePath,
    reader: DirectoryReader,
    /// Entries read so far.
    count: usize,
    /// Whether the directory has several parts.
    is_long: bool,
}

impl Listing {
    pub(super) async fn open(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<Self> {
        let reader = sftp.read_dir(path).await;
        Ok(Self {
            path: path.clone(),
            reader: reader.with_context(|| format!("cannot list {}", shown(path)))?,
            count: 0,
            is_long: false,
        })
    }

    /// Reads the next entry.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Listed>> {
        let what = || format!("cannot list {}", shown(&self.path));
        let Some(entry) = self.reader.next().await.with_context(what)? else {
            return Ok(None);
        };
        if self.count == MAX_ENTRIES {
            bail!("{}: more than {MAX_ENTRIES} entries", what());
        }
        self.count += 1;
        Ok(Some(Listed {
            name: entry.name().as_encoded_bytes().to_vec(),
            attributes: entry.attributes,
            target: None,
        }))
    }

    /// Reads entries for sorting, up to [`MAX_HELD_BYTES`]: nearly always all. `None` at the end.
    pub(super) async fn next_part(&mut self) -> anyhow::Result<Option<Vec<Listed>>> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < MAX_HELD_BYTES {
            let Some(entry) = self.next().await? else {
                break;
            };
            bytes += entry.held_bytes();
            entries.push(entry);
        }
        if bytes >= MAX_HELD_BYTES && !self.is_long {
            self.is_long = true;
            let path = shown(&self.path);
            output::eprint_error(&format!(
                "{path} has too many entries to sort: they are sorted in parts"
            ));
        }
        Ok(Some(entries).filter(|entries| !entries.is_empty()))
    }
}

impl Listed {
    /// Memory of the entry in bytes, with the overhead of its allocation.
    fn held_bytes(&self) -> usize {
        size_of::<Self>() + self.name.len() + 16
    }
}

impl View {
    /// Removes hidden entries and sorts the others.
    pub(super) fn arrange(&self, entries: &mut Vec<Listed>) {
        entries.retain(|entry| self.all || !entry.name.starts_with(b"."));
        let key = |entry: &Listed| match self.order {
            Order::Size => entry.attributes.size.unwrap_or(0),
            Order::Time => entry
                .attributes
                .times
                .map_or(0, |times| times.modified)
                .into(),
            Order::Name | Order::None => 0,
        };
        if self.order != Order::None {
            entries.sort_unstable_by(|a, b| key(b).cmp(&key(a)).then_with(|| a.name.cmp(&b.name)));
        }
        if self.reverse {
            entries.reverse();
        }
    }

    /// Prints `entries`, whose names are relative to `directory` if it is given. The short format
    /// fills lines of `width` with columns of names.
    pub(super) async fn print(
        &self,
        sftp: &Sftp,
        directory: Option<&RemotePath>,
        entries: &mut [Listed],
        width: Option<usize>,
    ) -> io::Result<()> {
        let name = |entry: &Listed| output::escape(&entry.name);
        match width {
            _ if self.long => self.print_long(sftp, directory, entries).await,
            Some(width) if !self.single => output::lines(columns(entries, name, width)),
            _ => output::lines(entries.iter().map(name)),
        }
    }

    async fn print_long(
        &self,
        sftp: &Sftp,
        directory: Option<&RemotePath>,
        entries: &mut [Listed],
    ) -> io::Result<()> {
        let owners = if self.numeric {
            Owners::default()
        } else {
            Owners::of(sftp, entries.iter().map(|entry| &entry.attributes)).await
        };
        // Before the targets of links are read: they are part of the last column, which needs no width.
        let columns = Columns::of(entries.iter().map(|entry| self.row(entry, &owners)));
        for chunk in entries.chunks_mut(LINKS_HELD) {
            read_links(sftp, directory, chunk).await;
            let rows = chunk.iter().map(|entry| self.row(entry, &owners));
            output::lines(rows.map(|row| columns.line(&row)))?;
            drop_links(chunk);
        }
        Ok(())
    }

    fn row(&self, entry: &Listed, owners: &Owners) -> Vec<String> {
        let attributes = &entry.attributes;
        let [user, group] = owners.columns(attributes);
        let size = match (attributes.size, self.human) {
            (Some(bytes), true) => size_text(bytes),
            (Some(bytes), false) => bytes.to_string(),
            (None, _) => "?".to_owned(),
        };
        let time = attributes.times.map(|times| time_text(times.modified));
        let mut name = output::escape(&entry.name);
        if let Some(target) = &entry.target {
            name += " -> ";
            name += &output::escape(target);
        }
        let mode = mode_text(attributes.permissions.unwrap_or(0));
        let time = time.unwrap_or_else(|| "?".to_owned());
        vec![mode, user, group, size, time, name]
    }
}

/// Reads the targets of the links among `entries`. A link that cannot be read has no target.
pub(super) async fn read_links(
    sftp: &Sftp,
    directory: Option<&RemotePath>,
    entries: &mut [Listed],
) {
    let links = entries
        .iter_mut()
        .filter(|entry| is_link(&entry.attributes));
    let reading = stream::iter(links).map(|entry| async move {
        let target = sftp.readlink(path_of(directory, entry)).await.ok();
        let target = target.map(|target| target.as_bytes().to_vec());
        entry.target = target.filter(|target| target.len() <= MAX_TARGET_BYTES);
    });
    reading
        .buffer_unordered(LINKS_AT_ONCE)
        .for_each(|()| async {})
        .await;
}

/// Drops the targets of links, to bound the memory.
pub(super) fn drop_links(entries: &mut [Listed]) {
    for entry in entries {
        entry.target = None;
    }
}

fn path_of(directory: Option<&RemotePath>, entry: &Listed) -> RemotePath {
    match directory {
        Some(directory) => directory.join(&entry.name),
        None => RemotePath::from(&entry.name[..]),
    }
}

/// The paths of the directories among `entries`, without links to directories.
pub(super) fn directories<'a>(
    path: &RemotePath,
    entries: &'a [Listed],
) -> impl DoubleEndedIterator<Item = RemotePath> + use<'a> {
    let path = path.clone();
    entries
        .iter()
        .filter(|entry| is_directory(&entry.attributes))
        .map(move |entry| path.join(&entry.name))
}

/// An entry as JSON.
pub(super) fn json(directory: Option<&RemotePath>, entry: &Listed, owners: &Owners) -> Value {
    let mut fields = output::name_fields(&entry.name);
    let path = path_of(directory, entry);
    let target = entry.target.as_deref();
    fields.extend(json_fields(&path, &entry.attributes, target, owners));
    Value::Object(fields)
}

/// The path, the attributes and the owners of a file as fields of a JSON object.
pub(super) fn json_fields(
    path: &RemotePath,
    attributes: &Attributes,
    target: Option<&[u8]>,
    owners: &Owners,
) -> Map<String, Value> {
    let mut fields = attributes::json_fields(attributes);
    output::put_bytes(&mut fields, "path", path.as_bytes());
    let user = attributes.owner.and_then(|owner| owners.user(owner.uid));
    let group = attributes.owner.and_then(|owner| owners.group(owner.gid));
    fields.insert("user".to_owned(), user.into());
    fields.insert("group".to_owned(), group.into());
    if let Some(target) = target {
        output::put_bytes(&mut fields, "target", target);
    }
    fields
}

/// Arranges names in columns that fit into `width`, sorted from top to bottom.
fn columns<T>(
    entries: &[T],
    name: impl Fn(&T) -> String,
    width: usize,
) -> impl Iterator<Item = String> {
    let widest = output::column_width(entries.iter().map(&name));
    let across = (width / (widest + 2)).max(1);
    let rows = entries.len().div_ceil(across);
    (0..rows).map(move |row| {
        let mut line = String::new();
        for entry in entries.iter().skip(row).step_by(rows) {
            output::push_cell(&mut line, &name(entry), widest);
            line.push_str("  ");
        }
        line.truncate(line.trim_end().len());
        line
    })
}

#[cfg(test)]
mod tests {
    use vsock_agent_client::protocol::sftp::Times;

    use super::*;

    fn listed(name: &str, size: u64, time: u32) -> Listed {
        Listed {
            name: name.into(),
            attributes: Attributes {
                size: Some(size),
                times: Some(Times {
                    accessed: 0,
                    modified: time,
                }),
                ..Attributes::default()
            },
            target: None,
        }
    }

    fn arranged(view: View) -> Vec<String> {
        let mut entries = vec![listed("b", 1, 5), listed("a", 2, 3), listed(".c", 3, 4)];
        view.arrange(&mut entries);
        let names = entries
            .into_iter()
            .map(|entry| String::from_utf8(entry.name).unwrap());
        names.collect()
    }

    #[test]
    fn listings_are_sorted_and_hidden_names_are_removed() {
        let view = |all, order, reverse| View {
            all,
            order,
            reverse,
            ..View::default()
        };
        assert_eq!(arranged(view(false, Order::Name, false)), ["a", "b"]);
        assert_eq!(arranged(view(true, Order::Name, true)), ["b", "a", ".c"]);
        assert_eq!(arranged(view(true, Order::Size, false)), [".c", "a", "b"]);
        assert_eq!(arranged(view(true, Order::Time, false)), ["b", ".c", "a"]);
        assert_eq!(arranged(view(true, Order::None, false)), ["b", "a", ".c"]);
    }

    #[test]
    fn columns_of_names_fill_the_width_from_top_to_bottom() {
        let beside = |names: &[&str], width| -> Vec<String> {
            columns(names, |name| (*name).to_owned(), width).collect()
        };
        let names = ["a", "bb", "c", "d", "e"];
        assert_eq!(beside(&names, 12), ["a   c   e", "bb  d"]);
        assert_eq!(beside(&names, 11), ["a   d", "bb  e", "c"]);
        assert_eq!(beside(&names, 1), ["a", "bb", "c", "d", "e"]);
        assert_eq!(beside(&[], 80), [""; 0]);
        let long = "x".repeat(70_000);
        assert_eq!(beside(&["a", &long], 80), ["a", &long]);
    }
}
