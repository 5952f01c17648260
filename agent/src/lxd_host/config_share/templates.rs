//! Writes rendered templates to their targets in `metadata.yaml`.

use std::{fs, io, path::Path};

use super::{
    Applied,
    metadata::{self, Template},
    read_if_there,
};
use crate::system::root::{Attributes, Root};

const FOLDER: &str = "files";
const METADATA_FILE: &str = "metadata.yaml";

/// Suffix of a rendered template.
const RENDERED: &str = ".out";

/// Default mode of a file.
const FILE_MODE: u32 = 0o644;

/// The kernel's host name.
const LIVE_HOSTNAME: &str = "proc/sys/kernel/hostname";
const HOSTNAME: &str = "/etc/hostname";

/// Paths of cloud-init's datasource `NoCloud`.
const SEEDS: [&str; 2] = [
    "/var/lib/cloud/seed/nocloud-net/meta-data",
    "/var/lib/cloud/seed/nocloud/meta-data",
];

/// Writes the files of the share below `root`, and sets the host name if `/etc/hostname` is one of them.
/// Errors are logged.
pub(super) fn apply(share: &Path, root: &Path) -> Applied {
    let folder = share.join(FOLDER);
    let Some(text) = read_if_there(&folder.join(METADATA_FILE)) else {
        return Applied::default();
    };
    let templates = match metadata::templates(&String::from_utf8_lossy(&text)) {
        Ok(templates) => templates,
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot read the image's metadata"
            );
            return Applied::default();
        }
    };
    let mut applied = Applied::default();
    for template in templates {
        let target = &template.target;
        let is_seed = SEEDS.iter().any(|seed| target == Path::new(seed));
        applied.image_has_seed_templates |= is_seed;
        match write(&folder, root, &template) {
            Ok(true) => tracing::info!(?target, "wrote a file of the host"),
            Ok(false) => continue,
            Err(error) => {
                tracing::error!(?target, %error, "cannot write a file of the host");
                continue;
            }
        }
        applied.wrote_seed |= is_seed;
        if target == Path::new(HOSTNAME)
            && let Err(error) = set_host_name(root)
        {
            tracing::error!(%error, "cannot set the host name");
        }
    }
    applied
}

/// False if the template is not rendered, or an existing file is left unchanged.
fn write(folder: &Path, root: &Path, template: &Template) -> io::Result<bool> {
    let rendered = folder.join(template.name.clone() + RENDERED);
    let content = match fs::read(rendered) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let attributes = Attributes {
        mode: template.mode.unwrap_or(FILE_MODE),
        uid: template.uid,
        gid: template.gid,
        create_only: template.create_only,
    };
    Root::open(root)?.write(&template.target, &content, attributes)
}

fn set_host_name(root: &Path) -> io::Result<()> {
    let name = fs::read(root.join(HOSTNAME.trim_start_matches('/')))?;
    let mut live = fs::OpenOptions::new()
        .write(true)
        .open(root.join(LIVE_HOSTNAME))?;
    io::Write::write_all(&mut live, name.trim_ascii())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const METADATA: &str = "templates:\n\
        \x20 /etc/hostname: {when: [create], template: hostname.tpl}\n\
        \x20 /etc/hosts: {when: [create], template: hosts.tpl}\n\
        \x20 /kept: {create_only: true, template: hostname.tpl}\n\
        \x20 /new/er: {create_only: true, template: hostname.tpl, mode: '600'}\n\
        \x20 /file/x: {template: hostname.tpl}\n\
        \x20 /var/lib/cloud/seed/nocloud-net/meta-data: {template: meta.tpl}\n";

    /// A share and a guest.
    fn folders(name: &str) -> (PathBuf, [PathBuf; 2]) {
        let parent = std::env::temp_dir().join(format!("agent-tpl-{name}-{}", std::process::id()));
        let [share, guest] = ["share", "guest"].map(|name| parent.join(name));
        fs::create_dir_all(share.join(FOLDER)).unwrap();
        fs::write(share.join("files/metadata.yaml"), METADATA).unwrap();
        fs::create_dir_all(guest.join("proc/sys/kernel")).unwrap();
        fs::write(guest.join(LIVE_HOSTNAME), "").unwrap();
        (parent, [share, guest])
    }

    fn read(folder: &Path, path: &str) -> String {
        fs::read_to_string(folder.join(path)).unwrap()
    }

    #[test]
    fn rendered_templates_are_written() {
        let (parent, [share, guest]) = folders("write");
        fs::write(share.join("files/hostname.tpl.out"), "vm1\n").unwrap();
        fs::write(guest.join("kept"), "old").unwrap();
        fs::write(guest.join("file"), "in the way").unwrap();
        let applied = apply(&share, &guest);
        assert!(!applied.wrote_seed);
        assert!(applied.image_has_seed_templates);
        assert_eq!(read(&guest, "etc/hostname"), "vm1\n");
        assert_eq!(read(&guest, "new/er"), "vm1\n");
        assert_eq!(read(&guest, "kept"), "old");
        assert_eq!(read(&guest, LIVE_HOSTNAME), "vm1");
        assert!(!guest.join("etc/hosts").exists());
        assert_eq!(read(&guest, "file"), "in the way");
        fs::remove_dir_all(&parent).unwrap();
    }

    #[test]
    fn a_rendered_seed_of_cloud_init_is_detected() {
        let (parent, [share, guest]) = folders("seed");
        fs::write(share.join("files/meta.tpl.out"), "instance-id: i\n").unwrap();
        assert!(apply(&share, &guest).wrote_seed);
        assert_eq!(read(&guest, LIVE_HOSTNAME), "");
        fs::remove_dir_all(&parent).unwrap();
    }
}
