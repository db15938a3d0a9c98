//! System tests of Podlane in network namespaces.
