//! Runs a command for several paths, in one virtual machine or in several.

use std::ffi::OsString;

use anyhow::Context;
use vsock_agent_client::{ClientError, SessionOptions, Sftp};

use crate::{config::Settings, exit};

/// SFTP sessions with virtual machines, one at a time.
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

    /// A session with `vm`. The session of the previous call is reused if it is with the same one.
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

/// Runs `action` for each operand. Prints errors and continues. Returns the exit code.
///
/// # Errors
///
/// An error after which no further operand can succeed.
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
                code = exit::print_error(&error);
            }
        }
    }
    Ok(if failed < operands.len() && failed > 0 {
        exit::PARTLY
    } else {
        code
    })
}

/// Whether no further operand can succeed: the session has ended, or stdout is closed.
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
