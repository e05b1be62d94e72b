"""KSM: pages with equal contents, of any address spaces, become one write-protected frame.

| module       | has                                                                          |
|--------------|------------------------------------------------------------------------------|
| `contents`   | the contents of a frame, and their checksum                                  |
| `items`      | the items of scanned pages, and their way out of the trees                   |
| `stable`     | the stable tree: merged frames by their contents, and chains                 |
| `unstable`   | the unstable tree: pages by contents that were the same in two scans         |
| `merge`      | write-protects a page, compares it, and replaces its frame                   |
| `scan`       | the scan: finds the next page, and decides what to do with it                |
| `advisor`    | chooses how many pages to scan, so that a scan takes the time that is wanted |
| `ksmd`       | runs the scan between requests                                               |
| `unmerge`    | gives merged pages frames of their own again                                 |
| `sysfs`      | the files of /sys/kernel/mm/ksm                                              |

What they work on is `kerneld.mm.space.ksm_state`. Answers to Linux v6.8 mm/ksm.c. There is one NUMA node, so there is
one stable tree, and no page of it ever moves to another (Linux: migrate_nodes).
"""
