//! Other people's agents, from Debian's packages: downloaded and unpacked, not installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use super::{VmError, command::run, paths};

/// An agent that our client must be able to drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StockAgent {
    /// LXD's 5.0.2.
    Lxd,
    /// Incus's 6.0, which Debian 12 has in its backports.
    Incus,
}

impl StockAgent {
    const fn package(self) -> &'static str {
        match self {
            Self::Lxd => "lxd-agent",
            Self::Incus => "incus-agent",
        }
    }

    /// Where the package has the binary, which is static.
    pub(super) const fn binary(self) -> &'static str {
        match self {
            Self::Lxd => "usr/bin/lxd-agent",
            Self::Incus => "usr/libexec/incus/incus-agent",
        }
    }

    /// What the package has beside the binary, with the modes.
    pub(super) const fn support(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::Lxd => &[
                ("lib/systemd/lxd-agent-setup", 0o755),
                ("lib/systemd/system/lxd-agent.service", 0o644),
            ],
            Self::Incus => &[
                ("lib/systemd/system/incus-agent.service", 0o644),
                ("lib/udev/rules.d/60-incus-agent.rules", 0o644),
                ("usr/libexec/incus/incus-agent-setup", 0o755),
            ],
        }
    }

    /// Gives the binary, which is downloaded the first time.
    ///
    /// # Errors
    ///
    /// [`VmError::Command`] with the words of apt.
    pub async fn find(self) -> Result<PathBuf, VmError> {
        Ok(self.unpacked().await?.join(self.binary()))
    }

    /// Gives a folder with all of the package.
    pub(super) async fn unpacked(self) -> Result<PathBuf, VmError> {
        let folder = paths::lab().join("stock").join(self.package());
        if !folder.join(self.binary()).exists() {
            // A download that was cut off left the folder without the binary.
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder)
                .map_err(VmError::io(format!("creating {}", folder.display())))?;
            self.download(&folder).await?;
        }
        Ok(folder)
    }

    async fn download(self, folder: &Path) -> Result<(), VmError> {
        let options = match self {
            Self::Lxd => Vec::new(),
            Self::Incus => backports(folder).await?,
        };
        let mut download = Command::new("apt-get");
        download
            .args(&options)
            .args(["-q", "download", self.package()]);
        run(download.current_dir(folder)).await?;
        let unpack = format!("dpkg-deb -x {}_*.deb .", self.package());
        run(Command::new("sh").args(["-c", &unpack]).current_dir(folder)).await?;
        Ok(())
    }
}

/// Makes apt see the backports beside this Debian, from the same mirror, in lists of its own.
/// Returns the options that make it look there.
async fn backports(folder: &Path) -> Result<Vec<String>, VmError> {
    let targets = ["indextargets", "--format", "$(CODENAME) $(REPO_URI)"];
    let known = run(Command::new("apt-get").args(targets)).await?;
    let mirror = known
        .lines()
        .find_map(|line| line.strip_prefix("bookworm "));
    let mirror = mirror.ok_or_else(|| VmError::missing("an apt source of Debian 12"))?;
    let list = folder.join("backports.list");
    let line = format!("deb {mirror} bookworm-backports main\n");
    fs::write(&list, line).map_err(VmError::io(format!("writing {}", list.display())))?;
    let [lists, cache] = ["lists", "cache"].map(|name| folder.join(name));
    for path in [lists.join("partial"), cache.join("archives/partial")] {
        fs::create_dir_all(&path).map_err(VmError::io(format!("creating {}", path.display())))?;
    }
    let options: Vec<String> = [
        format!("Dir::Etc::sourcelist={}", list.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", lists.display()),
        format!("Dir::Cache={}", cache.display()),
    ]
    .into_iter()
    .flat_map(|option| ["-o".to_owned(), option])
    .collect();
    run(Command::new("apt-get")
        .args(&options)
        .args(["-q", "update"]))
    .await?;
    Ok(options)
}
