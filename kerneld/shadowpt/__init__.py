"""The shadow page table: the session, the table in shared memory, and the check of the memory that it covers."""
