//! Keys in memory that no core and no swap gets (I6).

use std::fmt;
use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};
use zeroize::Zeroize;

use super::kek::KEY_LEN;

/// A 32-byte key on a page of its own, which is left out of cores, stays in memory and is wiped when dropped.
///
/// A store has a handful, so a page for each costs nothing. The ciphers that are made of one live on the stack for
/// one value, and are wiped after it.
pub(super) struct Guarded(MmapMut);

impl Guarded {
    /// Makes a key of zeros.
    ///
    /// # Panics
    /// If the kernel has no page to give, as any allocation does.
    pub(super) fn zeroed() -> Guarded {
        let page = MmapMut::map_anon(KEY_LEN).expect("the kernel gives a page");
        page.advise(Advice::DontDump)
            .expect("Linux has MADV_DONTDUMP since 3.4");
        // Only a limit on locked memory is in the way of this; the unit's MemorySwapMax=0 keeps swap away as well.
        let _ = page.lock();
        Guarded(page)
    }

    /// Moves a key here; what is left at its old place is the caller's to wipe.
    pub(super) fn of(key: &[u8; KEY_LEN]) -> Guarded {
        let mut guarded = Guarded::zeroed();
        guarded.copy_from_slice(key);
        guarded
    }
}

impl Deref for Guarded {
    type Target = [u8; KEY_LEN];

    fn deref(&self) -> &[u8; KEY_LEN] {
        self.0.first_chunk().expect("it was mapped this long")
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut [u8; KEY_LEN] {
        self.0.first_chunk_mut().expect("it was mapped this long")
    }
}

impl Clone for Guarded {
    fn clone(&self) -> Guarded {
        Guarded::of(self)
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guarded(redacted)")
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.zeroize();
    }
}
