//! Replacing a file by a new one that the same users may read: whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use crate::error::AccessError;

/// Of a new file: nobody but the owner. There are no secrets in it, but names and limits are nobody's
/// business.
pub(crate) const MODE: u32 = 0o600;
/// What an existing file may keep of its mode.
const MODE_KEPT: u32 = 0o660;

/// Writes `text` to a temporary file, which then takes the name `path`. Where there is a file already,
/// the new one gets its owner, its group and its mode (without what others may): a server that runs as
/// another user than whoever edits the file must be able to read the change.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), AccessError> {
    replace_with(path, text, keep_owner)
}

fn replace_with(
    path: &Path,
    text: &str,
    keep_owner: impl FnOnce(&File, &fs::Metadata) -> io::Result<()>,
) -> Result<(), AccessError> {
    let failed = |source: io::Error| AccessError::Write { path: path.to_owned(), source };
    let old = match fs::metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new()
        .prefix(".oarlock-keys-")
        .permissions(fs::Permissions::from_mode(MODE))
        .tempfile_in(folder)
        .map_err(failed)?;
    if let Some(old) = &old {
        keep_owner(temporary.as_file(), old).map_err(|source| AccessError::Owner {
            path: path.to_owned(),
            user: old.uid(),
            group: old.gid(),
            source,
        })?;
        // After the owner: until then the file is nobody else's to read.
        keep_mode(temporary.as_file(), old).map_err(failed)?;
    }
    temporary.write_all(text.as_bytes()).map_err(failed)?;
    temporary.as_file().sync_all().map_err(failed)?;
    // Before the new name, so that an error still means that nothing has changed.
    let folder = File::open(folder).map_err(failed)?;
    temporary.persist(path).map_err(|error| failed(error.error))?;
    // Makes the new name last through a power cut. The change has been made: whoever made it must be
    // told so, and see the secret, also where the system cannot promise that much.
    drop(folder.sync_all());
    Ok(())
}

/// Gives `file` the user and the group of `old`, where they differ.
fn keep_owner(file: &File, old: &fs::Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    let user = (new.uid() != old.uid()).then_some(old.uid());
    let group = (new.gid() != old.gid()).then_some(old.gid());
    if user.is_none() && group.is_none() {
        return Ok(());
    }
    fchown(file, user, group)
}

fn keep_mode(file: &File, old: &fs::Metadata) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(old.mode() & MODE_KEPT))
}

/// Gives a lock file that was just made (never one that someone else made) to those who have the keys
/// file: they shall be able to change it, too. Where that is not possible, the lock still holds.
pub(crate) fn share_lock(lock: &File, path: &Path) {
    if let Ok(old) = fs::metadata(path) {
        // It may fail, as said.
        let _ = keep_owner(lock, &old).and_then(|()| keep_mode(lock, &old));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_new_file_is_its_owners_and_an_old_one_keeps_its_mode_without_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        replace(&path, "first").unwrap();
        assert_eq!(mode(&path), 0o600);
        for (before, after) in
            [(0o640, 0o640), (0o660, 0o660), (0o400, 0o400), (0o644, 0o640), (0o4755, 0o640)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
            replace(&path, "next").unwrap();
            assert_eq!(mode(&path), after, "from {before:o}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "next");
    }

    #[test]
    fn an_old_file_keeps_its_owner_and_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let file = File::open(&path).unwrap();
        if let Err(error) = fchown(&file, Some(12_345), Some(23_456)) {
            // Nobody but root may do this; for others the test below says what happens.
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
        let before = fs::metadata(&path).unwrap();
        replace(&path, "new").unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_ne!(before.ino(), after.ino());
        assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
        assert_eq!(mode(&path), 0o640);
    }

    #[test]
    fn a_file_that_cannot_be_given_to_its_owner_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        fs::write(&path, "old").unwrap();
        let owner = fs::metadata(&path).unwrap();
        let denied = |_: &File, _: &fs::Metadata| Err(io::ErrorKind::PermissionDenied.into());
        let message = replace_with(&path, "new", denied).unwrap_err().to_string();
        let (user, group) = (owner.uid(), owner.gid());
        for part in [
            path.to_str().unwrap(),
            &format!("user {user} and group {group}"),
            "was not changed",
            "sudo",
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left over");
        // A file that is not there yet has no owner to keep.
        let new = folder.path().join("new.toml");
        replace_with(&new, "new", denied).unwrap();
        assert_eq!(fs::read_to_string(&new).unwrap(), "new");
    }
}
