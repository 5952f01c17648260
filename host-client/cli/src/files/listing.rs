//! Listings: what is in a directory of the guest, in some order, for people or for programs.

use std::{cmp::Ordering, io};

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

/// Most entries listed. A listing is sorted, so it is held; a guest could send names for ever.
pub(super) const MAX_ENTRIES: usize = 1_000_000;

/// Most bytes of entries held at a time, of a directory of any length.
pub(super) const MAX_HELD_BYTES: usize = 12 * 1024 * 1024;

/// Most entries with the targets of links held at a time. A target can be as long as a path.
pub(super) const LINKS_HELD: usize = 1024;

/// Longest target of a link that is shown (`PATH_MAX`). Linux has no longer ones.
const MAX_TARGET_BYTES: usize = 4096;

/// Links read at once.
const LINKS_AT_ONCE: usize = 32;

/// How a listing is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct View {
    /// Names that start with a dot too.
    pub(super) all: bool,
    /// Modes, owners, sizes and times.
    pub(super) long: bool,
    /// Owners as numbers.
    pub(super) numeric: bool,
    /// Sizes in units.
    pub(super) human: bool,
    /// One name in a line, on a terminal too.
    pub(super) single: bool,
    /// Backwards.
    pub(super) reverse: bool,
    pub(super) order: Order,
}

/// What comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// By the bytes of the names.
    #[default]
    Name,
    /// The largest first.
    Size,
    /// The newest first.
    Time,
    /// As the server has it.
    None,
}

/// One file of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: Vec<u8>,
    pub(super) attributes: Attributes,
    /// Where a link points; not always asked for.
    pub(super) target: Option<Vec<u8>>,
}

/// What a path is.
#[derive(Debug)]
pub(super) enum Content {
    /// A file, or something else that has no entries.
    File(Listed),
    /// A directory, or a link that leads to one.
    Directory,
}

/// Looks at a path.
pub(super) async fn content(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<Content> {
    let what = || format!("cannot list {}", shown(path));
    let attributes = match sftp.stat(path).await {
        // A link that leads nowhere is there all the same.
        Err(error) if error.is_not_found() => sftp.lstat(path).await,
        other => other,
    };
    let attributes = attributes.with_context(what)?;
    match attributes.file_type() {
        Some(FileType::Directory) | None => Ok(Content::Directory),
        Some(_) => itself(sftp, path).await.map(Content::File),
    }
}

/// A path, whatever it is, as an entry of a listing.
pub(super) async fn itself(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<Listed> {
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
    /// Entries that came so far.
    count: usize,
    /// Whether the first part was not all of it.
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

    /// The next entry, as it comes.
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

    /// As many of the next entries as can be held, so that they can be sorted: nearly always all.
    /// `None` at the end.
    pub(super) async fn part(&mut self) -> anyhow::Result<Option<Vec<Listed>>> {
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
                "{path} has too many entries to sort: they come in parts"
            ));
        }
        Ok(Some(entries).filter(|entries| !entries.is_empty()))
    }
}

impl Listed {
    /// Bytes of memory it takes, roughly: an allocation takes some more than what is in it.
    fn held_bytes(&self) -> usize {
        size_of::<Self>() + self.name.len() + 16
    }
}

impl View {
    /// Leaves out what is not to be shown, and sorts the rest.
    pub(super) fn arrange(&self, entries: &mut Vec<Listed>) {
        entries.retain(|entry| self.all || !entry.name.starts_with(b"."));
        let size = |entry: &Listed| entry.attributes.size.unwrap_or(0);
        let time = |entry: &Listed| entry.attributes.times.map_or(0, |times| times.modified);
        let by_name = |a: &Listed, b: &Listed| a.name.cmp(&b.name);
        let compare = |a: &Listed, b: &Listed| -> Ordering {
            match self.order {
                Order::Size => size(b).cmp(&size(a)).then_with(|| by_name(a, b)),
                Order::Time => time(b).cmp(&time(a)).then_with(|| by_name(a, b)),
                Order::Name | Order::None => by_name(a, b),
            }
        };
        if self.order != Order::None {
            entries.sort_unstable_by(compare);
        }
        if self.reverse {
            entries.reverse();
        }
    }

    /// Prints `entries` of a directory, or of none in particular. Names stand beside each other
    /// where a line has a `width`.
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
        // Where links point comes last in a line and has no column.
        let columns = Columns::of(entries.iter().map(|entry| self.row(entry, &owners)));
        for some in entries.chunks_mut(LINKS_HELD) {
            read_links(sftp, directory, some).await;
            output::lines(
                some.iter()
                    .map(|entry| columns.line(&self.row(entry, &owners))),
            )?;
            forget_links(some);
        }
        Ok(())
    }

    fn row(&self, entry: &Listed, owners: &Owners) -> Vec<String> {
        let attributes = &entry.attributes;
        let [user, group] = owners.columns(attributes);
        let name = output::escape(&entry.name);
        vec![
            mode_text(attributes.permissions.unwrap_or(0)),
            user,
            group,
            match (attributes.size, self.human) {
                (Some(bytes), true) => size_text(bytes),
                (Some(bytes), false) => bytes.to_string(),
                (None, _) => "?".to_owned(),
            },
            attributes
                .times
                .map_or_else(|| "?".to_owned(), |times| time_text(times.modified)),
            match &entry.target {
                Some(target) => format!("{name} -> {}", output::escape(target)),
                None => name,
            },
        ]
    }
}

/// Asks where the links among `entries` point. One that does not tell has none.
pub(super) async fn read_links(
    sftp: &Sftp,
    directory: Option<&RemotePath>,
    entries: &mut [Listed],
) {
    let links = entries
        .iter_mut()
        .filter(|entry| is_link(&entry.attributes));
    let reading = stream::iter(links).map(|entry| async move {
        let path = match directory {
            Some(directory) => directory.join(&entry.name),
            None => RemotePath::from(&entry.name[..]),
        };
        let target = sftp.readlink(path).await.ok();
        let target = target.map(|target| target.as_bytes().to_vec());
        entry.target = target.filter(|target| target.len() <= MAX_TARGET_BYTES);
    });
    reading
        .buffer_unordered(LINKS_AT_ONCE)
        .for_each(|()| async {})
        .await;
}

/// Lets go of where links point.
pub(super) fn forget_links(entries: &mut [Listed]) {
    for entry in entries {
        entry.target = None;
    }
}

/// The directories among `entries`, links to some left out.
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

/// One entry for a program.
pub(super) fn json(directory: Option<&RemotePath>, entry: &Listed, owners: &Owners) -> Value {
    let mut fields = output::name_fields(&entry.name);
    let path = match directory {
        Some(directory) => directory.join(&entry.name),
        None => RemotePath::from(&entry.name[..]),
    };
    let target = entry.target.as_deref();
    fields.extend(json_fields(&path, &entry.attributes, target, owners));
    Value::Object(fields)
}

/// A file as JSON.
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

/// Names beside each other, in order from top to bottom, as many as fit.
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
    fn entries_come_in_the_order_asked_for_and_hidden_ones_stay_hidden() {
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
    fn names_fill_the_width_from_top_to_bottom() {
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
