//! `stat`: shows the attributes of a file or a file system of a guest.

use anyhow::Context;
use serde_json::{Value, json};
use vsock_agent_client::{
    RemotePath, Sftp,
    protocol::sftp::{Attributes, Owner, PERMISSION_BITS, Times, extension::FileSystem, mode_text},
};

use super::{
    GuestPath,
    attributes::{is_link, size_text, time_text, type_name},
    listing::json_fields,
    operands::{self, Guests},
    owners::Owners,
    shown,
};
use crate::{args::StatArgs, config::Settings, output};

/// `agent-cli stat`.
pub(crate) async fn stat(settings: &Settings, args: StatArgs) -> anyhow::Result<u8> {
    let mut guests = Guests::new(settings, args.session.options());
    let is_json = args.format.is_json();
    let mut values = Vec::new();
    let code = operands::each(&args.paths, async |path| {
        let target = GuestPath::parse(path)?;
        let sftp = guests.session(&target.vm).await?;
        let (value, lines) = if args.file_system {
            let system = file_system(&sftp, &target.path).await?;
            let value = system_json(&target.path, &system);
            (value, system_lines(&target.path, &system))
        } else {
            let status = FileStatus::read(&sftp, &target.path, args.dereference).await?;
            (status.json(), status.lines())
        };
        if is_json {
            values.push(value);
            return Ok(());
        }
        Ok(output::lines(lines)?)
    })
    .await?;
    if is_json {
        output::json(&Value::Array(values))?;
    }
    Ok(code)
}

/// The attributes of a file, with the names of its owners and the target of a link.
#[derive(Debug)]
pub(super) struct FileStatus {
    path: RemotePath,
    attributes: Attributes,
    owners: Owners,
    target: Option<RemotePath>,
}

impl FileStatus {
    /// Reads the status. `follow` follows a symbolic link.
    pub(super) async fn read(sftp: &Sftp, path: &RemotePath, follow: bool) -> anyhow::Result<Self> {
        let attributes = if follow {
            sftp.stat(path).await
        } else {
            sftp.lstat(path).await
        };
        let attributes = attributes.with_context(|| format!("cannot stat {}", shown(path)))?;
        Ok(Self {
            path: path.clone(),
            owners: Owners::of(sftp, [&attributes]).await,
            target: if is_link(&attributes) {
                sftp.readlink(path).await.ok()
            } else {
                None
            },
            attributes,
        })
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let attributes = &self.attributes;
        let mut rows = vec![("path", shown(&self.path))];
        rows.push(("type", type_name(attributes).unwrap_or("?").to_owned()));
        rows.extend(self.target.as_ref().map(|target| ("target", shown(target))));
        if let Some(mode) = attributes.permissions {
            let octal = mode & PERMISSION_BITS;
            rows.push(("mode", format!("{octal:04o} {}", mode_text(mode))));
        }
        rows.extend(attributes.size.map(|size| ("size", size.to_string())));
        if let Some(Owner { uid, gid }) = attributes.owner {
            rows.push(("user", owner(uid, self.owners.user(uid))));
            rows.push(("group", owner(gid, self.owners.group(gid))));
        }
        if let Some(Times { accessed, modified }) = attributes.times {
            rows.push(("accessed", format!("{} UTC", time_text(accessed))));
            rows.push(("modified", format!("{} UTC", time_text(modified))));
        }
        table(&rows)
    }

    fn json(&self) -> Value {
        let target = self.target.as_ref().map(RemotePath::as_bytes);
        let fields = json_fields(&self.path, &self.attributes, target, &self.owners);
        Value::Object(fields)
    }
}

fn owner(id: u32, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{name} ({id})"),
        None => id.to_string(),
    }
}

fn table(rows: &[(&str, String)]) -> Vec<String> {
    let rows = rows
        .iter()
        .map(|(key, value)| vec![(*key).to_owned(), value.clone()]);
    output::table(&Vec::from_iter(rows))
}

/// Reads the status of the file system of a path.
pub(super) async fn file_system(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<FileSystem> {
    let system = sftp.statvfs(path).await;
    system.with_context(|| format!("cannot stat the file system of {}", shown(path)))
}

/// Space in bytes: total, used, free for all users, free for root.
fn space(system: &FileSystem) -> [u64; 4] {
    let bytes = |blocks: u64| blocks.saturating_mul(system.fragment_size);
    let used = system.blocks.saturating_sub(system.blocks_free);
    [
        bytes(system.blocks),
        bytes(used),
        bytes(system.blocks_available),
        bytes(system.blocks_free),
    ]
}

fn system_lines(path: &RemotePath, system: &FileSystem) -> Vec<String> {
    let [size, used, free, free_for_root] =
        space(system).map(|bytes| format!("{} ({bytes})", size_text(bytes)));
    let flags = [
        (FileSystem::READ_ONLY, "read-only"),
        (FileSystem::NO_SETUID, "nosuid"),
    ];
    let set = flags.iter().filter(|(flag, _)| system.flags & flag != 0);
    let options: Vec<&str> = set.map(|(_, name)| *name).collect();
    table(&[
        ("path", shown(path)),
        ("size", size),
        ("used", used),
        ("free", free),
        ("free for root", free_for_root),
        ("block size", system.block_size.to_string()),
        ("inodes", system.files.to_string()),
        ("free inodes", system.files_available.to_string()),
        ("longest name", system.name_max.to_string()),
        ("id", format!("{:x}", system.id)),
        ("options", options.join(" ")),
    ])
}

fn system_json(path: &RemotePath, system: &FileSystem) -> Value {
    let [size, used, free, free_for_root] = space(system);
    let mut value = json!({
        "size": size,
        "used": used,
        "free": free,
        "free_for_root": free_for_root,
        "block_size": system.block_size,
        "inodes": system.files,
        "inodes_free": system.files_available,
        "name_max": system.name_max,
        "id": system.id,
        "read_only": system.flags & FileSystem::READ_ONLY != 0,
        "no_setuid": system.flags & FileSystem::NO_SETUID != 0,
    });
    if let Some(fields) = value.as_object_mut() {
        output::put_bytes(fields, "path", path.as_bytes());
    }
    value
}

/// The table of `df`: the space of a file system, or its inodes.
pub(super) fn df_lines(system: &FileSystem, inodes: bool, human: bool) -> Vec<String> {
    let numbers = if !inodes {
        space(system)
    } else {
        [
            system.files,
            system.files.saturating_sub(system.files_free),
            system.files_available,
            system.files_free,
        ]
    };
    let number = |value: u64| match (human, inodes) {
        (true, _) => size_text(value),
        (false, false) => (value / 1024).to_string(),
        (false, true) => value.to_string(),
    };
    let [total, used, ..] = numbers.map(u128::from);
    let percent = (used * 100).checked_div(total).unwrap_or(0);
    let total = if inodes { "Inodes" } else { "Size" };
    let head = [total, "Used", "Avail", "(root)", "%Capacity"];
    let mut row = Vec::from(numbers.map(number));
    row.push(format!("{percent}%"));
    output::table(&[head.map(str::to_owned).to_vec(), row])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn df_counts_space_in_fragments_and_shows_kib() {
        let system = FileSystem {
            block_size: 4096,
            fragment_size: 1024,
            blocks: 100,
            blocks_free: 40,
            blocks_available: 30,
            files: 10,
            files_free: 4,
            files_available: 3,
            ..FileSystem::default()
        };
        assert_eq!(
            df_lines(&system, false, false)[1],
            "100   60    30     40      60%"
        );
        assert_eq!(
            df_lines(&system, true, false)[1],
            "10      6     3      4       60%"
        );
        assert_eq!(
            df_lines(&FileSystem::default(), false, true)[1],
            "0     0     0      0       0%"
        );
    }
}
