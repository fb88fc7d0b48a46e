// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The inodes that the guest holds: each an `O_PATH` descriptor, which pins the inode and can neither read
//! nor write it, and the number of references that the guest has to give back.

use std::collections::HashMap;
use std::collections::hash_map;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::attr::Status;
use crate::filesystem::{NodeId, Result};
use crate::fuse::abi::ROOT_ID;

/// What makes two descriptors the same inode to the guest. The mount belongs to it: the same file may be
/// reached read-only through one mount and writable through another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
    pub(super) mount: u64,
}

/// An inode that the guest holds.
#[derive(Debug)]
pub(super) struct Inode {
    fd: OwnedFd,
    key: Key,
    /// Of a pinned inode this never changes, so that a check against it holds for good.
    kind: FileType,
}

impl Inode {
    /// The mount on which it was found.
    pub(super) const fn mount(&self) -> u64 {
        self.key.mount
    }

    /// Fails unless it is a regular file. Anything but files and directories is never opened: to open a FIFO
    /// blocks, to open a device acts on the host's hardware.
    pub(super) fn require_file(&self) -> Result<()> {
        match self.kind {
            FileType::RegularFile => Ok(()),
            FileType::Directory => Err(Errno::ISDIR),
            FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NXIO),
        }
    }

    /// Fails unless it is a directory.
    pub(super) fn require_directory(&self) -> Result<()> {
        if self.is_directory() {
            Ok(())
        } else {
            Err(Errno::NOTDIR)
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub(super) fn is_symlink(&self) -> bool {
        self.kind == FileType::Symlink
    }
}

impl AsFd for Inode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// All inodes that the guest holds.
#[derive(Debug)]
pub(super) struct Inodes {
    root: Arc<Inode>,
    /// How many there may be beside the root.
    capacity: usize,
    held: RwLock<Held>,
}

#[derive(Debug)]
struct Held {
    by_id: HashMap<NodeId, Counted>,
    by_key: HashMap<Key, NodeId>,
    /// Never used twice, so that a number the guest kept too long cannot mean another inode.
    next: u64,
}

#[derive(Debug)]
struct Counted {
    inode: Arc<Inode>,
    references: u64,
}

impl Held {
    fn empty() -> Self {
        Self {
            by_id: HashMap::new(),
            by_key: HashMap::new(),
            next: ROOT_ID + 1,
        }
    }
}

impl Inodes {
    pub(super) fn new(root: OwnedFd, status: &Status, capacity: usize) -> Self {
        let root = Arc::new(Inode {
            fd: root,
            key: status.key(),
            kind: status.kind(),
        });
        Self {
            root,
            capacity,
            held: RwLock::new(Held::empty()),
        }
    }

    /// The inode that the guest calls `node`.
    ///
    /// # Errors
    /// `EBADF` if the guest was never given that number, or has given back its last reference.
    pub(super) fn get(&self, node: NodeId) -> Result<Arc<Inode>> {
        if node.0 == ROOT_ID {
            return Ok(Arc::clone(&self.root));
        }
        self.read()
            .by_id
            .get(&node)
            .map(|held| Arc::clone(&held.inode))
            .ok_or(Errno::BADF)
    }

    /// Gives the guest one more reference to the inode behind `fd`, and says its number.
    ///
    /// # Errors
    /// `ENFILE` if the guest holds as many inodes as it may.
    pub(super) fn insert(&self, fd: OwnedFd, status: &Status) -> Result<NodeId> {
        let key = status.key();
        if key == self.root.key {
            return Ok(NodeId(ROOT_ID));
        }
        let mut held = self.write();
        let Held {
            by_id,
            by_key,
            next,
        } = &mut *held;
        let node = match by_key.entry(key) {
            hash_map::Entry::Occupied(known) => *known.get(),
            hash_map::Entry::Vacant(_) if by_id.len() >= self.capacity => return Err(Errno::NFILE),
            hash_map::Entry::Vacant(free) => {
                let node = NodeId(*next);
                *next += 1;
                let inode = Arc::new(Inode {
                    fd,
                    key,
                    kind: status.kind(),
                });
                by_id.insert(
                    node,
                    Counted {
                        inode,
                        references: 0,
                    },
                );
                *free.insert(node)
            }
        };
        let counted = by_id.get_mut(&node).ok_or(Errno::IO)?;
        counted.references = counted.references.saturating_add(1);
        Ok(node)
    }

    /// Fails if the guest holds as many inodes as it may: to be asked before something is made.
    pub(super) fn require_room(&self) -> Result<()> {
        if self.read().by_id.len() < self.capacity {
            Ok(())
        } else {
            Err(Errno::NFILE)
        }
    }

    /// Takes `count` references back. Taking more than there are takes them all: the guest's count is only
    /// its word, and must not make ours wrap around. The root stays.
    pub(super) fn forget(&self, node: NodeId, count: u64) {
        let mut held = self.write();
        let Some(counted) = held.by_id.get_mut(&node) else {
            return;
        };
        counted.references = counted.references.saturating_sub(count);
        if counted.references == 0 {
            let key = counted.inode.key;
            held.by_id.remove(&node);
            held.by_key.remove(&key);
        }
    }

    /// Takes all references back.
    pub(super) fn clear(&self) {
        let mut held = self.write();
        // The numbers go on: what a kernel held must mean nothing to the next one.
        let next = held.next;
        *held = Held {
            next,
            ..Held::empty()
        };
    }

    // A thread that panicked in between leaves the tables at worst with an inode that nobody forgets.
    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs::File;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Find(usize),
        Forget(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let count = prop_oneof![3 => 0_u64..4, 1 => Just(u64::MAX)];
        prop_oneof![
            (0_usize..4).prop_map(Step::Find),
            (0_u64..12, count).prop_map(|(node, count)| Step::Forget(node, count))
        ]
    }

    proptest! {
        #[test]
        fn an_inode_is_held_exactly_while_references_are_out(steps in prop::collection::vec(step(), 0..60)) {
            let root = tempfile::tempdir().unwrap();
            let paths: Vec<_> = (0..4).map(|index| root.path().join(index.to_string())).collect();
            paths.iter().for_each(|path| std::fs::write(path, "").unwrap());
            let directory: OwnedFd = File::open(root.path()).unwrap().into();
            let status = Status::of(&directory).unwrap();
            let inodes = Inodes::new(directory, &status, 3);
            let mut expected: HashMap<NodeId, u64> = HashMap::new();

            for step in steps {
                match step {
                    Step::Find(index) => {
                        let file: OwnedFd = File::open(&paths[index]).unwrap().into();
                        let status = Status::of(&file).unwrap();
                        match inodes.insert(file, &status) {
                            Ok(node) => *expected.entry(node).or_default() += 1,
                            Err(error) => prop_assert!(error == Errno::NFILE && expected.len() == 3),
                        }
                    }
                    Step::Forget(node, count) => {
                        inodes.forget(NodeId(node), count);
                        let left = expected.get(&NodeId(node)).map_or(0, |held| held.saturating_sub(count));
                        if left == 0 {
                            expected.remove(&NodeId(node));
                        } else {
                            expected.insert(NodeId(node), left);
                        }
                    }
                }
                for node in 2..20 {
                    let held = expected.contains_key(&NodeId(node));
                    prop_assert_eq!(inodes.get(NodeId(node)).is_ok(), held);
                }
                prop_assert!(inodes.get(NodeId(ROOT_ID)).is_ok());
            }
        }
    }
}
