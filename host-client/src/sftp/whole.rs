//! Replacing files, and storing and fetching several small files in one request, by extensions.

use bytes::Bytes;

use super::{RemotePath, Sftp, status};
use crate::{
    error::ClientError,
    protocol::sftp::{
        Reply,
        extension::{
            self, Failure, FetchFiles, FetchedFile, FetchedFiles, ReplaceFile, Replaced,
            Replacement, StoreFile, StoreFiles, StoredFiles,
        },
    },
};

impl Sftp {
    /// Whether the server gives a new file what the one that it replaces has.
    pub(crate) fn replaces(&self) -> bool {
        self.has_extension(extension::REPLACE)
    }

    /// Renames a complete file over another one, of which it gets all but the content.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, [`ClientError::Unsupported`] when it cannot, or
    /// another [`ClientError`].
    pub(crate) async fn replace_file(
        &self,
        from: &RemotePath,
        to: &RemotePath,
        replacement: Replacement,
    ) -> Result<Replaced, ClientError> {
        const ACTION: &str = "rename over the target";
        let request = ReplaceFile {
            from: from.clone().checked(ACTION)?,
            to: to.clone().checked(ACTION)?,
            replacement,
        };
        let data = request.encode();
        self.answer(extension::REPLACE, data, ACTION, Replaced::decode)
            .await
    }

    /// Writes files into a directory. The errors of single files are in the result.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses all of it, [`ClientError::Unsupported`] when it
    /// cannot, or another [`ClientError`].
    pub(crate) async fn store(
        &self,
        directory: &RemotePath,
        files: Vec<StoreFile>,
        replacement: Replacement,
    ) -> Result<Vec<Result<(), ClientError>>, ClientError> {
        const ACTION: &str = "write the file";
        let asked = files.len();
        let directory = directory.clone().checked(ACTION)?;
        let data = StoreFiles {
            directory,
            files,
            replacement,
        };
        let data = data.encode();
        let StoredFiles(stored) = self
            .answer(extension::STORE, data, ACTION, StoredFiles::decode)
            .await?;
        self.each(stored, asked, ACTION)
    }

    /// Reads files of a directory, by name and number of bytes. The errors of single files are in the
    /// result.
    ///
    /// # Errors
    ///
    /// As for [`store`](Self::store); [`ClientError::Protocol`] when there is more than was asked
    /// for.
    pub(crate) async fn fetch(
        &self,
        directory: &RemotePath,
        files: Vec<(Bytes, u32)>,
    ) -> Result<Vec<Result<FetchedFile, ClientError>>, ClientError> {
        const ACTION: &str = "read the file";
        let directory = directory.clone().checked(ACTION)?;
        let request = FetchFiles { directory, files };
        let FetchedFiles(fetched) = self
            .answer(
                extension::FETCH,
                request.encode(),
                ACTION,
                FetchedFiles::decode,
            )
            .await?;
        for (file, (_, length)) in fetched.iter().zip(&request.files) {
            let bytes = file.as_ref().map_or(0, |file| file.data.len());
            if u32::try_from(bytes).is_ok_and(|bytes| bytes <= *length) {
                continue;
            }
            let what = format!("{bytes} bytes where {length} were asked for");
            return Err(self.at(ClientError::protocol(what)));
        }
        self.each(fetched, request.files.len(), ACTION)
    }

    /// The outcomes, if they are as many as were asked for.
    fn each<T>(
        &self,
        outcomes: Vec<Result<T, Failure>>,
        asked: usize,
        action: &'static str,
    ) -> Result<Vec<Result<T, ClientError>>, ClientError> {
        let told = outcomes.len();
        if told != asked {
            let what = format!("{told} results for {asked} files");
            return Err(self.at(ClientError::protocol(what)));
        }
        let refused = |Failure { code, message }| {
            let reply = Reply::Status { code, message };
            self.at(status::refused(reply, action))
        };
        let outcomes = outcomes.into_iter();
        Ok(outcomes.map(|outcome| outcome.map_err(refused)).collect())
    }
}
