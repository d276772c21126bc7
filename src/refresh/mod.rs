//! The decisions: when to refresh, whom first, and what an answer means.
//!
//! Everything here is pure. Time, random numbers and the network's answers are
//! arguments; what to do next is the result. Nothing in this folder imports
//! anything else of ours, and none of it knows a clock, a socket or a database
//! (`tests/module_map.rs` rejects them), so every subtle case replays in a test.
//!
//! | module | decides |
//! |---|---|
//! | [`time`] | points in time that survive restarts |
//! | [`token`] | secrets, and the token set of RFC 6749 §5.1 |
//! | [`token_response`] | what a token endpoint's answer means |
//! | [`policy`] | due times, jitter, backoff, `Retry-After` |
//! | [`grant`] | what a grant is: key, standing, row |
//! | [`attempt`] | what a due grant needs, and what an attempt's outcome does to it |
//! | [`renewal`] | what is refreshed once more because an admin asked for every grant |
//! | [`reading`] | what a reader gets |
//! | [`replay`] | whether a refresh token of unknown fate may be presented again |
//! | [`pacing`] | one provider's rate, in-flight cap, cool-down and stop |
//! | [`horizon`] | which due grant of a provider is next |
//! | [`slots`] | who holds a grant's one place for changing its tokens |

pub mod attempt;
pub mod grant;
pub mod horizon;
pub mod pacing;
pub mod policy;
pub mod reading;
pub mod renewal;
pub mod replay;
pub mod slots;
pub mod time;
pub mod token;
pub mod token_response;
