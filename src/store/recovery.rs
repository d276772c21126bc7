//! The recovery key: a second way into a keyring, kept on paper or in a safe.
//!
//! A key-encryption key that is bound to a host or its TPM dies with it; this one does not. As text it is 56
//! characters of Crockford's base32 in groups of four: 32 random bytes and 3 of their SHA-256, so that a slip of
//! the pen is told apart from a key that does not fit.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::kek::{KEY_LEN, Kek};

/// Without I, L, O and U, which look like others or make words.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CHECK_LEN: usize = 3;
const GROUP: usize = 4;
/// 35 bytes, five bits a character.
const TEXT_LEN: usize = (KEY_LEN + CHECK_LEN) * 8 / 5;

/// A recovery key; zeroized on drop, redacted in `Debug`.
pub struct RecoveryKey(Kek);

/// Says that a text is no recovery key; holds nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRecoveryKey {
    /// It has another length, or a character that no recovery key has.
    #[error(
        "a recovery key has 14 groups of 4 letters and digits, as `freshctl key recovery` shows it"
    )]
    Form,
    /// Its last characters do not fit the others.
    #[error("the recovery key has a typing error: its last characters do not fit the others")]
    Check,
}

impl RecoveryKey {
    /// Makes a new random one from the system's random source.
    pub fn generate() -> RecoveryKey {
        RecoveryKey(Kek::generate())
    }

    /// Reads one as it was typed: in any case, with or without hyphens and spaces, O for 0, I and L for 1.
    ///
    /// # Errors
    /// See [`NoRecoveryKey`].
    pub fn from_text(text: &str) -> Result<RecoveryKey, NoRecoveryKey> {
        let mut bytes = Zeroizing::new([0; KEY_LEN + CHECK_LEN]);
        let mut len = 0;
        for char in text
            .bytes()
            .filter(|c| *c != b'-' && !c.is_ascii_whitespace())
        {
            let plain = match char.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                other => other,
            };
            let digit = ALPHABET.iter().position(|known| *known == plain);
            let digit = digit
                .filter(|_| len < TEXT_LEN)
                .ok_or(NoRecoveryKey::Form)?;
            for bit in 0..5 {
                let at = len * 5 + bit;
                bytes[at / 8] |= ((digit >> (4 - bit) & 1) as u8) << (7 - at % 8);
            }
            len += 1;
        }
        if len != TEXT_LEN {
            return Err(NoRecoveryKey::Form);
        }
        let (key, check) = bytes.split_at(KEY_LEN);
        if Sha256::digest(key)[..CHECK_LEN] != *check {
            return Err(NoRecoveryKey::Check);
        }
        let key = key.first_chunk().expect("it was split there");
        Ok(RecoveryKey(Kek::from_bytes(key)))
    }

    /// Returns it as people keep it. Secret.
    pub fn expose(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(self.0.bytes().to_vec());
        let check = Sha256::digest(self.0.bytes());
        bytes.extend_from_slice(&check[..CHECK_LEN]);
        let mut text = Zeroizing::new(String::with_capacity(TEXT_LEN + TEXT_LEN / GROUP));
        for nth in 0..TEXT_LEN {
            if nth > 0 && nth % GROUP == 0 {
                text.push('-');
            }
            let bit = |at: usize| usize::from(bytes[at / 8] >> (7 - at % 8) & 1);
            let digit = (nth * 5..nth * 5 + 5).fold(0, |digit, at| digit << 1 | bit(at));
            text.push(char::from(ALPHABET[digit]));
        }
        text
    }

    pub(super) fn kek(&self) -> &Kek {
        &self.0
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_is_read_however_it_is_typed() {
        let key = RecoveryKey::generate();
        let text = key.expose();
        assert_eq!((text.len(), text.split('-').count()), (69, 14));
        let typed = [
            text.to_string(),
            text.to_lowercase(),
            text.replace('-', ""),
            format!(" {}\n", text.replace('-', " ")),
            text.replace('0', "o").replace('1', "l"),
        ];
        for typed in typed {
            let read = RecoveryKey::from_text(&typed).unwrap();
            assert_eq!(read.kek().bytes(), key.kek().bytes(), "{typed}");
        }
        assert_eq!(format!("{key:?}"), "RecoveryKey(redacted)");
    }

    #[test]
    fn a_slip_is_told_and_nothing_of_it_is_shown() {
        let text = RecoveryKey::generate().expose();
        let refused = |text: &str| RecoveryKey::from_text(text).err();
        for bad in [
            &text[1..],
            &format!("{}0", *text),
            &text.replace('-', "/"),
            "",
            "U",
        ] {
            assert_eq!(refused(bad), Some(NoRecoveryKey::Form), "{bad}");
        }
        for nth in (0..text.len()).filter(|nth| text.as_bytes()[*nth] != b'-') {
            let mut slip = text.to_string();
            let other = if text[nth..].starts_with('7') {
                "8"
            } else {
                "7"
            };
            slip.replace_range(nth..=nth, other);
            assert_eq!(refused(&slip), Some(NoRecoveryKey::Check), "at {nth}");
        }
    }
}
