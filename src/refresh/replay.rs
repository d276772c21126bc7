//! May a refresh token of unknown fate be presented again?
//!
//! Its last request was sent, or was about to be when we crashed, and no whole
//! answer came. If the server took it, the token is spent: presenting it again
//! is harmless at some servers and revokes the whole family at others.

use super::grant::Mark;
use super::policy::Rotation;
use super::time::UnixTime;

/// When the refresh token may be presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// At any time.
    Now,
    /// Not before this moment, when the access token has ended and nothing is left to lose.
    NotBefore(UnixTime),
}

/// Decides about a refresh token that `mark` says has requests without outcome.
///
/// Must only be asked when no request of ours is under way (the caller holds the grant's slot and
/// its connection has ended). `expires_at` is the access token's end; without an access
/// token, or where its end is unknown, there is nothing a revoked family could take along that is known to live.
///
/// | rotation | again |
/// |---|---|
/// | none, overlap | at once |
/// | grace | once, within the grace counted from the first send; afterwards as strict |
/// | strict, periodic, unknown | when the access token has expired |
pub fn may_present(
    rotation: Rotation,
    mark: Mark,
    now: UnixTime,
    expires_at: Option<UnixTime>,
) -> Replay {
    let once_nothing_is_lost = match expires_at {
        Some(at) if at > now => Replay::NotBefore(at),
        _ => Replay::Now,
    };
    match rotation {
        Rotation::None | Rotation::Overlap => Replay::Now,
        Rotation::Grace(_) if within_grace(rotation, mark, now) => Replay::Now,
        Rotation::Grace(_) | Rotation::Strict | Rotation::Periodic | Rotation::Unknown => {
            once_nothing_is_lost
        }
    }
}

/// Returns whether the one replay that a server's grace allows is still to be had.
pub fn within_grace(rotation: Rotation, mark: Mark, now: UnixTime) -> bool {
    // A mark from the future means that the clock was set back: how old it is nobody knows, and a
    // replay after the grace revokes the family.
    matches!(rotation, Rotation::Grace(grace)
        if mark.presented < 2
            && mark.first_sent_at <= now
            && now.since(mark.first_sent_at) < grace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SENT: UnixTime = UnixTime::from_secs(1_000);
    const ENDS: UnixTime = UnixTime::from_secs(1_600);
    const GRACE: Rotation = Rotation::Grace(Duration::from_secs(30));

    fn decide(rotation: Rotation, presented: u32, secs: u64) -> Replay {
        let mark = Mark {
            first_sent_at: SENT,
            presented,
        };
        may_present(rotation, mark, SENT + Duration::from_secs(secs), Some(ENDS))
    }

    #[test]
    fn a_token_of_unknown_fate_is_replayed_by_rotation_class() {
        let wait = Replay::NotBefore(ENDS);
        let table = [
            (Rotation::None, 1, 5, Replay::Now),
            (Rotation::None, 7, 5, Replay::Now),
            (Rotation::Overlap, 1, 5, Replay::Now),
            (GRACE, 1, 29, Replay::Now),
            (GRACE, 1, 30, wait),
            (GRACE, 2, 5, wait),
            (Rotation::Strict, 1, 5, wait),
            (Rotation::Periodic, 1, 5, wait),
            (Rotation::Unknown, 1, 5, wait),
            (Rotation::Strict, 1, 600, Replay::Now),
            (Rotation::Unknown, 9, 601, Replay::Now),
            (GRACE, 2, 600, Replay::Now),
        ];
        for (rotation, presented, secs, expected) in table {
            assert_eq!(
                decide(rotation, presented, secs),
                expected,
                "{rotation:?} presented {presented} after {secs} s"
            );
        }
    }

    #[test]
    fn the_grace_of_a_mark_from_the_future_counts_as_over() {
        let mark = Mark {
            first_sent_at: SENT,
            presented: 1,
        };
        let now = SENT - Duration::from_secs(1);
        assert_eq!(
            may_present(GRACE, mark, now, Some(ENDS)),
            Replay::NotBefore(ENDS)
        );
    }

    #[test]
    fn without_an_access_token_there_is_nothing_to_lose() {
        let mark = Mark {
            first_sent_at: SENT,
            presented: 1,
        };
        assert_eq!(may_present(Rotation::Strict, mark, SENT, None), Replay::Now);
    }
}
