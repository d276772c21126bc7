use super::*;
use crate::refresh::token::TokenKind;

fn set(grant: &Grant, name: &str) -> TokenCommit {
    TokenCommit {
        id: grant.id,
        provider: grant.key.provider.clone(),
        presented_generation: grant.generation,
        tokens: Arc::new(TokenSet {
            access_token: Some(AccessToken::new(format!("access-{name}"))),
            token_type: "bearer".into(),
            expires_at: Some(at(7200)),
            obtained_at: at(3600),
            refresh_token: Some(RefreshToken::new(format!("refresh-{name}"))),
            refresh_token_end: tokens(name).refresh_token_end,
            scope: Some("a b".into()),
        }),
        due_at: Some(at(7000)),
        standing: Standing::Active,
        unused_refreshes: 3,
        at: at(3600),
    }
}

#[tokio::test]
async fn what_was_spilled_is_read_back_whole_at_the_next_start() {
    let bench = Bench::new();
    let (anna, bert) = (bench.import("anna").await, bench.import("bert").await);
    let sets = [set(&anna, "one"), set(&bert, "two")];
    for set in &sets {
        bench.store.spill(set.clone()).await.unwrap();
    }
    let bench = bench.reopen().await;
    let read = bench.store.spilled().await.unwrap();
    assert_eq!(read.len(), 2);
    for (read, set) in read.iter().zip(&sets) {
        assert_eq!(read.tokens, set.tokens);
        assert_eq!((read.id, &read.provider), (set.id, &set.provider));
        assert_eq!(read.presented_generation, set.presented_generation);
        assert_eq!((read.due_at, read.at), (set.due_at, set.at));
        assert_eq!(read.standing, set.standing);
        assert_eq!(read.unused_refreshes, set.unused_refreshes);
    }
    let committed = bench.store.commit_tokens(read[0].clone()).await.unwrap();
    assert!(matches!(committed, Cas::Applied(grant) if grant.generation == 2));
}

#[tokio::test]
async fn a_later_record_follows_what_an_earlier_process_left() {
    let bench = Bench::new();
    let anna = bench.import("anna").await;
    bench.store.spill(set(&anna, "one")).await.unwrap();
    let bench = bench.reopen().await;
    assert_eq!(bench.store.spilled().await.unwrap().len(), 1);
    bench.store.spill(set(&anna, "two")).await.unwrap();
    let bench = bench.reopen().await;
    assert_eq!(bench.store.spilled().await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_emptied_spill_file_holds_nothing_and_takes_new_records() {
    let bench = Bench::new();
    let anna = bench.import("anna").await;
    bench.store.spill(set(&anna, "one")).await.unwrap();
    bench.store.clear_spill().await.unwrap();
    let file = bench.dir.path().join("spill");
    assert!(std::fs::read(&file).unwrap().iter().all(|byte| *byte == 0));
    bench.store.spill(set(&anna, "two")).await.unwrap();
    let bench = bench.reopen().await;
    assert_eq!(bench.store.spilled().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_torn_or_edited_record_is_left_out_and_the_others_are_read() {
    use std::os::unix::fs::FileExt;
    let bench = Bench::new();
    let (anna, bert) = (bench.import("anna").await, bench.import("bert").await);
    bench.store.spill(set(&anna, "one")).await.unwrap();
    bench.store.spill(set(&bert, "two")).await.unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(bench.dir.path().join("spill"))
        .unwrap();
    // A byte of the first record's sealed part; its head is 24 bytes.
    file.write_all_at(&[0xff; 3], 60).unwrap();
    let bench = bench.reopen().await;
    let read = bench.store.spilled().await.unwrap();
    assert_eq!(read.iter().map(|set| set.id).collect::<Vec<_>>(), [bert.id]);
}

#[tokio::test]
async fn a_record_moved_to_another_row_or_generation_does_not_open() {
    use std::os::unix::fs::FileExt;
    for at in [8, 16] {
        let bench = Bench::new();
        let anna = bench.import("anna").await;
        bench.store.spill(set(&anna, "one")).await.unwrap();
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(bench.dir.path().join("spill"))
            .unwrap();
        file.write_all_at(&[9], at).unwrap();
        let bench = bench.reopen().await;
        assert_eq!(bench.store.spilled().await.unwrap().len(), 0, "byte {at}");
    }
}

#[tokio::test]
async fn a_spilled_set_whose_grant_went_on_without_it_is_revoked_and_changes_nothing() {
    let bench = Bench::new();
    let anna = bench.import("anna").await;
    bench.store.spill(set(&anna, "late")).await.unwrap();
    let newer = set(&anna, "newer");
    bench.store.commit_tokens(newer).await.unwrap();
    let bench = bench.reopen().await;
    for set in bench.store.spilled().await.unwrap() {
        assert!(matches!(
            bench.store.commit_tokens(set).await,
            Ok(Cas::Lost)
        ));
    }
    let waiting = waiting_revocations(&bench.store).await;
    assert_eq!(
        waiting,
        [("hubspot".into(), TokenKind::Refresh, "refresh-late".into())]
    );
}

#[tokio::test]
async fn the_spill_file_takes_its_space_before_it_is_needed_and_hides_what_it_holds() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let anna = bench.import("anna").await;
    let path = bench.dir.path().join("spill");
    let metadata = path.metadata().unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert!(metadata.blocks() * 512 >= metadata.len(), "it has no holes");
    bench.store.spill(set(&anna, "canary")).await.unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for secret in ["access-canary", "refresh-canary", "anna"] {
        assert!(
            !bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes())
        );
    }
    assert_eq!(
        path.metadata().unwrap().len(),
        metadata.len(),
        "it never grows"
    );
}

#[tokio::test]
async fn a_full_spill_file_says_so_and_keeps_what_it_has() {
    let bench = Bench::new();
    let anna = bench.import("anna").await;
    let mut kept = 0;
    let mut large = set(&anna, "x");
    let tokens = TokenSet {
        access_token: Some(AccessToken::new("t".repeat(1 << 20))),
        ..(*large.tokens).clone()
    };
    large.tokens = Arc::new(tokens);
    while bench.store.spill(large.clone()).await.is_ok() {
        kept += 1;
        assert!(kept < 100, "it grows");
    }
    assert!(kept >= 3, "{kept}");
    let bench = bench.reopen().await;
    assert_eq!(bench.store.spilled().await.unwrap().len(), kept);
}

#[tokio::test]
async fn a_set_is_not_called_spilled_into_a_file_that_was_deleted() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    std::fs::remove_file(bench.dir.path().join("spill")).unwrap();
    let spilled = bench.store.spill(commit(&grant, "second")).await;
    assert_eq!(spilled, Err(StoreError::Unavailable));
}
