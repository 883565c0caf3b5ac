use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use crate::StoreError;

/// Holds the kernel's exclusive lock beside a database until dropped.
///
/// The kernel frees it when the process ends, however it ends. The file itself stays: it means nothing without the lock.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Returns the locked file: `<database file>.lock`, or `<database file>.<role>.lock`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn take(database: &Path, ending: &str) -> Result<Self, StoreError> {
        let mut path = database.as_os_str().to_owned();
        path.push(".");
        path.push(ending);
        let path = PathBuf::from(path);

        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        owner_only(&mut options);
        let file = options.open(&path).map_err(|source| StoreError::File { path: path.clone(), source })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(StoreError::File { path, source }),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would not do while a child process between fork and exec shares the descriptor.
        // If unlocking fails, closing follows, and nothing more can be done.
        let _ = self.file.unlock();
    }
}

/// Makes a file that `options` creates readable and writable by its owner alone.
#[cfg_attr(not(unix), expect(clippy::needless_pass_by_ref_mut, reason = "only Unix has modes"))]
pub(crate) fn owner_only(options: &mut OpenOptions) {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    #[cfg(not(unix))]
    let _ = options;
}
