use crate::notes::{Notes, Write};

#[tokio::test]
async fn own_commits_are_not_those_of_others() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    assert!(!writer.others_wrote().await.unwrap());
    writer.write(Write::Note(1)).await.unwrap();
    assert!(!writer.others_wrote().await.unwrap());
}

#[tokio::test]
async fn a_commit_of_another_connection_shows_once() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let mut stranger = notes.stranger().await;
    let insert = sqlx::query("INSERT INTO note (id) VALUES (2)");
    insert.execute(&mut stranger).await.unwrap();
    writer.write(Write::Note(1)).await.unwrap();
    assert!(writer.others_wrote().await.unwrap());
    assert!(!writer.others_wrote().await.unwrap());
}
