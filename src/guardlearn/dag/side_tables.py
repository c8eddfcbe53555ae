"""Index that finds near-duplicates of a specification; derived from texts, rebuilt whenever its settings change.

Filled only in repositories that hold specifications without a group.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Table, Text

from guardlearn.dag.tables import metadata

__all__ = ["side_bands", "side_index"]

_Key = BigInteger().with_variant(Integer(), "sqlite")

side_bands = Table(
    "side_bands",
    metadata,
    Column("band", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, primary_key=True, autoincrement=False),  # hash of the band's three signature values
    Column("key", _Key, primary_key=True, autoincrement=False),  # specifications.key
    sqlite_with_rowid=False,
)

side_index = Table(
    "side_index",  # one row: what the signatures were made with
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("scheme", Text, nullable=False),  # near_duplicates.scheme()
    Column("specs", BigInteger, nullable=False),  # known specifications when common shingles were last looked for
    Column("common", LargeBinary, nullable=False),  # the shingles most of them hold, uint32
)
