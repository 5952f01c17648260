//! `ls`: files and directories of a guest, or the configured machines.

use std::{
    ffi::{OsStr, OsString},
    io,
};

use anyhow::bail;
use serde_json::Value;
use vsock_agent_client::{RemotePath, Sftp};

use super::{
    Place,
    listing::{self, Content, Listed, MAX_ENTRIES, Order, View},
    operands::{self, Guests},
    owners::Owners,
};
use crate::{
    args::{Format, LsArgs},
    config::Settings,
    output,
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
        json: Vec::new(),
    };
    let code = operands::each(&args.paths, async |path| {
        let place = place(settings, path)?;
        let sftp = guests.session(&place.vm).await?;
        shown.show(&sftp, &place.path).await
    })
    .await?;
    if format == Format::Json {
        output::json(&Value::Array(shown.json))?;
    }
    Ok(code)
}

/// A machine without a path means where its agent is.
fn place(settings: &Settings, text: &OsString) -> anyhow::Result<Place> {
    Place::parse(text).or_else(|error| {
        match text.to_str().filter(|vm| settings.target(vm).is_ok()) {
            Some(vm) => Ok(Place {
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
    json: Vec<Value>,
}

impl Shown {
    async fn show(&mut self, sftp: &Sftp, path: &RemotePath) -> anyhow::Result<()> {
        let entries = match self.itself {
            true => Content::File(listing::itself(sftp, path).await?),
            false => listing::content(sftp, path).await?,
        };
        let mut entries = match entries {
            Content::File(file) => return self.add(sftp, None, vec![file]).await,
            Content::Directory(entries) => entries,
        };
        // Of each directory only the names of those in it wait, the next one last.
        let mut waiting: Vec<RemotePath> = Vec::new();
        let mut path = path.clone();
        loop {
            self.view.arrange(&mut entries);
            if self.recursive {
                waiting.extend(listing::directories(&path, &entries).rev());
            }
            self.header(&path)?;
            self.add(sftp, Some(&path), entries).await?;
            match waiting.pop() {
                Some(next) => path = next,
                None => return Ok(()),
            }
            entries = listing::entries(sftp, &path).await?;
        }
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
            let lines = self.view.lines(sftp, directory, &mut entries, None).await;
            output::lines(&lines)?;
            return Ok(());
        }
        listing::read_links(sftp, directory, &mut entries).await;
        let owners = Owners::of(sftp, entries.iter().map(|entry| &entry.attributes)).await;
        let values = entries
            .iter()
            .map(|entry| listing::json(directory, entry, &owners));
        self.json.extend(values);
        Ok(())
    }
}

/// A name of the host for a person.
pub(super) fn shown(name: &OsStr) -> String {
    output::escape(name.as_encoded_bytes())
}
