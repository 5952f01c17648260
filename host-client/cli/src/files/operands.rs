//! Several paths on one command line, in one machine or in many.

use std::ffi::OsString;

use anyhow::Context;
use vsock_agent_client::{ClientError, SessionOptions, Sftp};

use crate::{config::Settings, exit};

/// Sessions with the machines that were named, one at a time.
#[derive(Debug)]
pub(super) struct Guests<'a> {
    settings: &'a Settings,
    options: SessionOptions,
    open: Option<(String, Sftp)>,
}

impl<'a> Guests<'a> {
    pub(super) const fn new(settings: &'a Settings, options: SessionOptions) -> Self {
        Self {
            settings,
            options,
            open: None,
        }
    }

    /// A session with a machine; the last one if it is with that.
    pub(super) async fn session(&mut self, vm: &str) -> anyhow::Result<Sftp> {
        if let Some((open, sftp)) = &self.open
            && open == vm
        {
            return Ok(sftp.clone());
        }
        let sftp = self.settings.client(vm)?.sftp_with(&self.options).await;
        let sftp = sftp.with_context(|| format!("cannot open a file session with {vm}"))?;
        self.open = Some((vm.to_owned(), sftp.clone()));
        Ok(sftp)
    }
}

/// Does something for each operand. What fails is told, and the rest is done all the same, as long
/// as there is somebody to do it. Returns the exit code.
pub(super) async fn each(
    operands: &[OsString],
    mut action: impl AsyncFnMut(&OsString) -> anyhow::Result<()>,
) -> anyhow::Result<u8> {
    let (mut failed, mut code) = (0, 0);
    for operand in operands {
        match action(operand).await {
            Ok(()) => {}
            Err(error) if is_over(&error) => return Err(error),
            Err(error) => {
                failed += 1;
                code = exit::tell(&error);
            }
        }
    }
    Ok(if failed < operands.len() && failed > 0 {
        exit::PARTLY
    } else {
        code
    })
}

/// Whether nothing more can be done after this: the session has ended, or nobody reads our output.
pub(super) fn is_over(error: &anyhow::Error) -> bool {
    exit::is_broken_pipe(error)
        || error.chain().any(|cause| {
            matches!(
                cause.downcast_ref::<ClientError>(),
                Some(
                    ClientError::Connect { .. }
                        | ClientError::ConnectionLost { .. }
                        | ClientError::IdentityRefused { .. }
                        | ClientError::Protocol { .. }
                        | ClientError::Silent { .. }
                )
            )
        })
}
