//! `ls`: lists files and directories of a guest, or the configured virtual machines.

use std::{ffi::OsString, io};

use anyhow::bail;
use vsock_agent_client::{RemotePath, Sftp};

use super::{
    GuestPath,
    listing::{
        self, Content, LINKS_HELD, Listed, Listing, MAX_ENTRIES, MAX_HELD_BYTES, Order, View,
    },
    operands::{self, Guests},
    owners::Owners,
};
use crate::{
    args::LsArgs,
    config::Settings,
    output::{self, JsonArray},
    vms,
};

/// `agent-cli ls`.
pub(crate) async fn ls(settings: &Settings, args: LsArgs) -> anyhow::Result<u8> {
    let is_json = args.format.is_json();
    if args.paths.is_empty() {
        return vms::list(settings, is_json).map(|()| 0);
    }
    let mut guests = Guests::new(settings, args.session.options());
    let mut printer = Printer {
        view: view(&args),
        recursive: args.recursive,
        directory: args.directory,
        has_headers: !is_json && (args.paths.len() > 1 || args.recursive),
        is_first: true,
        entries: 0,
        json: is_json.then(JsonArray::default),
    };
    let code = operands::each(&args.paths, async |path| {
        let target = parse_target(settings, path)?;
        let sftp = guests.session(&target.vm).await?;
        printer.print(&sftp, &target.path).await
    })
    .await?;
    if let Some(json) = printer.json {
        json.end()?;
    }
    Ok(code)
}

/// Parses an operand. A virtual machine without a path means the working directory of its agent.
fn parse_target(settings: &Settings, text: &OsString) -> anyhow::Result<GuestPath> {
    GuestPath::parse(text).or_else(|error| {
        match text.to_str().filter(|vm| settings.target(vm).is_ok()) {
            Some(vm) => Ok(GuestPath {
                vm: vm.to_owned(),
                path: RemotePath::from("."),
            }),
            None => Err(error),
        }
    })
}

fn view(args: &LsArgs) -> View {
    View {
        all: args.all,
        long: args.long || args.numeric,
        numeric: args.numeric,
        human: args.human,
        single: true,
        reverse: args.reverse,
        order: match (args.by_size, args.by_time) {
            (true, _) => Order::Size,
            (_, true) => Order::Time,
            _ => Order::Name,
        },
    }
}

/// Prints listings.
#[derive(Debug)]
struct Printer {
    view: View,
    recursive: bool,
    /// Whether directories are listed themselves.
    directory: bool,
    has_headers: bool,
    /// Whether no header was printed before.
    is_first: bool,
    entries: usize,
    json: Option<JsonArray>,
}

impl Printer {
    async fn print(&mut self, sftp: &Sftp, path: &RemotePath) -> anyhow::Result<()> {
        let content = if self.directory {
            Content::File(listing::entry(sftp, path).await?)
        } else {
            listing::content(sftp, path).await?
        };
        if let Content::File(file) = content {
            return self.print_entries(sftp, None, vec![file]).await;
        }
        // A stack of paths: the subdirectories of a directory come next.
        let mut pending = vec![path.clone()];
        let mut bytes = held_bytes(path);
        while let Some(path) = pending.pop() {
            bytes -= held_bytes(&path);
            let mut listing = Listing::open(sftp, &path).await?;
            self.header(&path)?;
            let mut found = Vec::new();
            while let Some(mut entries) = listing.next_part().await? {
                self.view.arrange(&mut entries);
                if self.recursive {
                    let directories = Vec::from_iter(listing::directories(&path, &entries));
                    bytes += directories.iter().map(held_bytes).sum::<usize>();
                    if bytes > MAX_HELD_BYTES {
                        bail!("{}: it contains too many directories", super::shown(&path));
                    }
                    found.extend(directories);
                }
                self.print_entries(sftp, Some(&path), entries).await?;
            }
            pending.extend(found.into_iter().rev());
        }
        Ok(())
    }

    fn header(&mut self, path: &RemotePath) -> io::Result<()> {
        if !self.has_headers {
            return Ok(());
        }
        let is_first = std::mem::take(&mut self.is_first);
        let gap = if is_first { "" } else { "\n" };
        output::line(&format!("{gap}{}:", super::shown(path)))
    }

    async fn print_entries(
        &mut self,
        sftp: &Sftp,
        directory: Option<&RemotePath>,
        mut entries: Vec<Listed>,
    ) -> anyhow::Result<()> {
        self.entries += entries.len();
        if self.entries > MAX_ENTRIES {
            bail!("more than {MAX_ENTRIES} entries in all");
        }
        let Some(json) = &mut self.json else {
            return Ok(self.view.print(sftp, directory, &mut entries, None).await?);
        };
        for chunk in entries.chunks_mut(LINKS_HELD) {
            listing::read_links(sftp, directory, chunk).await;
            let owners = Owners::of(sftp, chunk.iter().map(|entry| &entry.attributes)).await;
            let entries = chunk.iter();
            json.items(entries.map(|entry| listing::json(directory, entry, &owners)))?;
            listing::drop_links(chunk);
        }
        Ok(())
    }
}

/// Memory of a pending path in bytes.
fn held_bytes(path: &RemotePath) -> usize {
    size_of::<RemotePath>() + path.as_bytes().len()
}
