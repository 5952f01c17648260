//! `ls`: a directory of a guest, or the configured machines.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use vsock_agent_client::{RemotePath, Sftp, protocol::sftp::Attributes};

use super::Place;
use crate::{
    args::{Format, LsArgs},
    config::Settings,
    output,
};

/// Most entries listed. A listing is sorted, so it is held; a guest could send names for ever.
const MAX_ENTRIES: usize = 1_000_000;

/// Type bits of a mode (`inode(7)`).
const TYPE_MASK: u32 = 0o170_000;
pub(super) const TYPE_DIRECTORY: u32 = 0o040_000;
pub(super) const TYPE_REGULAR: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;

/// `agent-cli ls`.
pub(crate) async fn ls(settings: &Settings, args: LsArgs) -> anyhow::Result<u8> {
    let Some(text) = args.path else {
        return settings.list(args.format);
    };
    let place = match Place::parse(&text) {
        Ok(place) => place,
        // A machine without a path means where its agent is.
        Err(error) => match text.to_str().filter(|vm| settings.target(vm).is_ok()) {
            Some(vm) => Place {
                vm: vm.to_owned(),
                path: RemotePath::from("."),
            },
            None => return Err(error),
        },
    };
    let sftp = settings.client(&place.vm)?.sftp().await?;
    let entries = entries(&sftp, &place.path).await?;
    match args.format {
        Format::Json => output::json(&json!(entries.iter().map(json_entry).collect::<Vec<_>>()))?,
        Format::Human if args.long => print_long(&entries)?,
        Format::Human => {
            for entry in &entries {
                output::line(&output::escape(&entry.name))?;
            }
        }
    }
    Ok(0)
}

/// One file of a listing.
#[derive(Debug)]
pub(super) struct Entry {
    name: Vec<u8>,
    attributes: Attributes,
}

/// The entries of a directory, sorted by their bytes, or the one file that `path` is.
pub(super) async fn entries(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<Vec<Entry>> {
    let what = || format!("cannot list {}", output::escape(path.as_bytes()));
    let attributes = sftp.stat(path).await.with_context(what)?;
    if file_type(&attributes).is_some_and(|kind| kind != TYPE_DIRECTORY) {
        return Ok(vec![Entry {
            name: path.as_bytes().to_vec(),
            attributes,
        }]);
    }
    let mut directory = sftp.read_dir(path).await.with_context(what)?;
    let mut entries = Vec::new();
    while let Some(entry) = directory.next().await.with_context(what)? {
        if entries.len() == MAX_ENTRIES {
            bail!("{}: more than {MAX_ENTRIES} entries", what());
        }
        entries.push(Entry {
            name: entry.name().as_bytes().to_vec(),
            attributes: entry.attributes,
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Prints modes, owners, sizes, times and names.
pub(super) fn print_long(entries: &[Entry]) -> std::io::Result<()> {
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            let attributes = &entry.attributes;
            let (user, group) = attributes.owner.unwrap_or_default();
            vec![
                mode_text(attributes.permissions.unwrap_or(0)),
                user.to_string(),
                group.to_string(),
                attributes.size.unwrap_or(0).to_string(),
                time_text(attributes.times.unwrap_or_default().1),
                output::escape(&entry.name),
            ]
        })
        .collect();
    output::table(&rows)
        .iter()
        .try_for_each(|row| output::line(row))
}

fn json_entry(entry: &Entry) -> Value {
    let attributes = &entry.attributes;
    let mut fields = output::name_fields(&entry.name);
    let kind = file_type(attributes).map(|kind| match kind {
        TYPE_DIRECTORY => "directory",
        TYPE_REGULAR => "file",
        TYPE_LINK => "symlink",
        _ => "other",
    });
    fields.insert("type".to_owned(), json!(kind));
    let mode = attributes
        .permissions
        .map(|mode| format!("{:04o}", mode & 0o7777));
    fields.insert("mode".to_owned(), json!(mode));
    fields.insert("size".to_owned(), json!(attributes.size));
    fields.insert(
        "uid".to_owned(),
        json!(attributes.owner.map(|owner| owner.0)),
    );
    fields.insert(
        "gid".to_owned(),
        json!(attributes.owner.map(|owner| owner.1)),
    );
    fields.insert(
        "mtime".to_owned(),
        json!(attributes.times.map(|times| times.1)),
    );
    Value::Object(fields)
}

/// The type bits, if the server gave a mode with some.
pub(super) fn file_type(attributes: &Attributes) -> Option<u32> {
    let kind = attributes.permissions? & TYPE_MASK;
    (kind != 0).then_some(kind)
}

/// A mode as `ls -l` writes it.
fn mode_text(mode: u32) -> String {
    let kind = match mode & TYPE_MASK {
        TYPE_DIRECTORY => 'd',
        TYPE_LINK => 'l',
        0o060_000 => 'b',
        0o020_000 => 'c',
        0o010_000 => 'p',
        0o140_000 => 's',
        TYPE_REGULAR => '-',
        _ => '?',
    };
    let bit = |bits: u32, letter: char| match mode & bits {
        0 => '-',
        _ => letter,
    };
    let execute = |bits: u32, special: u32, both: char, only: char| match (
        mode & bits != 0,
        mode & special != 0,
    ) {
        (true, true) => both,
        (false, true) => only,
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        execute(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        execute(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        execute(0o001, 0o1000, 't', 'T'),
    ]
    .iter()
    .collect()
}

/// Seconds since 1970 as a date in UTC. The days are counted in years that begin in March, so
/// that the leap day comes last (H. Hinnant, "chrono-compatible low-level date algorithms").
fn time_text(seconds: u32) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..=9 => (era * 400 + year, month + 3),
        _ => (era * 400 + year + 1, month - 9),
    };
    format!(
        "{year:04}-{month:02}-{date:02} {:02}:{:02}",
        rest / 3600,
        rest / 60 % 60
    )
}

/// A name for a person.
pub(super) fn shown(name: &OsStr) -> String {
    output::escape(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_as_ls_shows_them() {
        assert_eq!(mode_text(0o100_644), "-rw-r--r--");
        assert_eq!(mode_text(0o041_777), "drwxrwxrwt");
        assert_eq!(mode_text(0o104_711), "-rws--x--x");
        assert_eq!(mode_text(0o120_777), "lrwxrwxrwx");
    }

    #[test]
    fn dates_are_right_at_their_edges() {
        assert_eq!(time_text(0), "1970-01-01 00:00");
        assert_eq!(time_text(951_782_400), "2000-02-29 00:00");
        assert_eq!(time_text(951_868_799), "2000-02-29 23:59");
        assert_eq!(time_text(1_735_689_599), "2024-12-31 23:59");
        assert_eq!(time_text(u32::MAX), "2106-02-07 06:28");
    }
}
