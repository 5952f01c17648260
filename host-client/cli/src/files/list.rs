//! `ls`: files and directories of a guest, or the configured machines.

use std::{
    ffi::{OsStr, OsString},
    io,
};

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
    args::{Format, LsArgs},
    config::Settings,
    output::{self, JsonArray},
};

/// `agent-cli ls`.
pub(crate) async fn ls(settings: &Settings, args: LsArgs) -> anyhow::Result<u8> {
    let format = args.format.value();
    if args.paths.is_empty() {
        return settings.list(format);
    }
    let mut guests = Guests::new(settings, args.session.options());
    let mut shown = Shown {
        view: view(&args),
        format,
        recursive: args.recursive,
        itself: args.directory,
        has_headers: args.paths.len() > 1 || args.recursive,
        is_first: true,
        entries: 0,
        json: JsonArray::default(),
    };
    let code = operands::each(&args.paths, async |path| {
        let target = parse_target(settings, path)?;
        let sftp = guests.session(&target.vm).await?;
        shown.show(&sftp, &target.path).await
    })
    .await?;
    if format == Format::Json {
        shown.json.end()?;
    }
    Ok(code)
}

/// A machine without a path means the working directory of its agent.
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

/// What is shown, and what was already.
#[derive(Debug)]
struct Shown {
    view: View,
    format: Format,
    recursive: bool,
    itself: bool,
    has_headers: bool,
    is_first: bool,
    entries: usize,
    json: JsonArray,
}

impl Shown {
    async fn show(&mut self, sftp: &Sftp, path: &RemotePath) -> anyhow::Result<()> {
        let content = if self.itself {
            Content::File(listing::itself(sftp, path).await?)
        } else {
            listing::content(sftp, path).await?
        };
        if let Content::File(file) = content {
            return self.add(sftp, None, vec![file]).await;
        }
        // Of each directory only the names of those in it wait, the next one last.
        let mut waiting = vec![path.clone()];
        let mut bytes = held_bytes(path);
        while let Some(path) = waiting.pop() {
            bytes -= held_bytes(&path);
            let mut listing = Listing::open(sftp, &path).await?;
            self.header(&path)?;
            let mut found = Vec::new();
            while let Some(mut entries) = listing.part().await? {
                self.view.arrange(&mut entries);
                if self.recursive {
                    let directories = Vec::from_iter(listing::directories(&path, &entries));
                    bytes += directories.iter().map(held_bytes).sum::<usize>();
                    if bytes > MAX_HELD_BYTES {
                        bail!("{}: too many directories in it", super::shown(&path));
                    }
                    found.extend(directories);
                }
                self.add(sftp, Some(&path), entries).await?;
            }
            waiting.extend(found.into_iter().rev());
        }
        Ok(())
    }

    fn header(&mut self, path: &RemotePath) -> io::Result<()> {
        if self.format == Format::Json || !self.has_headers {
            return Ok(());
        }
        if !std::mem::take(&mut self.is_first) {
            output::line("")?;
        }
        output::line(&format!("{}:", super::shown(path)))
    }

    async fn add(
        &mut self,
        sftp: &Sftp,
        directory: Option<&RemotePath>,
        mut entries: Vec<Listed>,
    ) -> anyhow::Result<()> {
        self.entries += entries.len();
        if self.entries > MAX_ENTRIES {
            bail!("more than {MAX_ENTRIES} entries in all");
        }
        if self.format == Format::Human {
            self.view.print(sftp, directory, &mut entries, None).await?;
            return Ok(());
        }
        for some in entries.chunks_mut(LINKS_HELD) {
            listing::read_links(sftp, directory, some).await;
            let owners = Owners::of(sftp, some.iter().map(|entry| &entry.attributes)).await;
            let values = some.iter();
            self.json
                .items(values.map(|entry| listing::json(directory, entry, &owners)))?;
            listing::forget_links(some);
        }
        Ok(())
    }
}

/// Bytes that a path takes while it waits.
fn held_bytes(path: &RemotePath) -> usize {
    size_of::<RemotePath>() + path.as_bytes().len()
}

/// A name of the host for a person.
pub(super) fn shown(name: &OsStr) -> String {
    output::escape(name.as_encoded_bytes())
}
