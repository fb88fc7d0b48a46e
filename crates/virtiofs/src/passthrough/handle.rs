// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The files and directories that the guest has open.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::filesystem::{HandleId, NodeId, Result};

/// What is behind a handle.
#[derive(Debug)]
enum Kind {
    File,
    /// Reading a directory moves the descriptor's position, so only one may at a time.
    Directory(Mutex<()>),
}

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    node: NodeId,
    file: File,
    kind: Kind,
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Handle {
    /// Waits until nobody else reads the directory.
    pub(super) fn lock_position(&self) -> Result<MutexGuard<'_, ()>> {
        match &self.kind {
            Kind::Directory(position) => {
                Ok(position.lock().unwrap_or_else(PoisonError::into_inner))
            }
            Kind::File => Err(Errno::NOTDIR),
        }
    }
}

/// All open files and directories.
#[derive(Debug)]
pub(super) struct Handles {
    capacity: usize,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    by_id: HashMap<HandleId, Arc<Handle>>,
    /// Never used twice, so that a number the guest kept too long cannot mean another file.
    next: u64,
}

impl Handles {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            open: Mutex::new(Open {
                by_id: HashMap::new(),
                next: 1,
            }),
        }
    }

    /// Fails if the guest has as much open as it may: to be asked before anything is opened or made.
    pub(super) fn require_room(&self) -> Result<()> {
        if self.open().by_id.len() < self.capacity {
            Ok(())
        } else {
            Err(Errno::NFILE)
        }
    }

    pub(super) fn insert_file(&self, node: NodeId, fd: OwnedFd) -> Result<HandleId> {
        self.insert(Handle {
            node,
            file: fd.into(),
            kind: Kind::File,
        })
    }

    pub(super) fn insert_directory(&self, node: NodeId, fd: OwnedFd) -> Result<HandleId> {
        self.insert(Handle {
            node,
            file: fd.into(),
            kind: Kind::Directory(Mutex::new(())),
        })
    }

    fn insert(&self, handle: Handle) -> Result<HandleId> {
        let mut open = self.open();
        if open.by_id.len() >= self.capacity {
            return Err(Errno::NFILE);
        }
        let id = HandleId(open.next);
        open.next += 1;
        open.by_id.insert(id, Arc::new(handle));
        Ok(id)
    }

    /// The file that is open on `node` under this handle.
    ///
    /// # Errors
    /// `EBADF` if there is none: the guest's numbers are only its word.
    pub(super) fn file(&self, node: NodeId, id: HandleId) -> Result<Arc<Handle>> {
        self.find(node, id, |kind| matches!(kind, Kind::File))
    }

    /// The directory that is open on `node` under this handle.
    ///
    /// # Errors
    /// `EBADF` if there is none.
    pub(super) fn directory(&self, node: NodeId, id: HandleId) -> Result<Arc<Handle>> {
        self.find(node, id, |kind| matches!(kind, Kind::Directory(_)))
    }

    fn find(
        &self,
        node: NodeId,
        id: HandleId,
        fits: impl Fn(&Kind) -> bool,
    ) -> Result<Arc<Handle>> {
        match self.open().by_id.get(&id) {
            Some(handle) if handle.node == node && fits(&handle.kind) => Ok(Arc::clone(handle)),
            _ => Err(Errno::BADF),
        }
    }

    /// Closes a handle, once nobody uses it any longer.
    pub(super) fn remove(&self, node: NodeId, id: HandleId) -> Result<()> {
        let mut open = self.open();
        match open.by_id.get(&id) {
            Some(handle) if handle.node == node => {
                let closed = open.by_id.remove(&id);
                // Closing may wait for a disk or a network; nobody else should.
                drop(open);
                drop(closed);
                Ok(())
            }
            _ => Err(Errno::BADF),
        }
    }

    /// Closes everything.
    pub(super) fn clear(&self) {
        let closed = std::mem::take(&mut self.open().by_id);
        drop(closed);
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
