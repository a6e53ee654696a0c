"""OpenNebula's side of the driver: what its action scripts are given, and what they must answer.

``xml`` reads the bytes, ``parse`` turns them into the types of ``vm``, ``argv`` types the arguments, ``framing``
speaks back, ``config`` reads the options of the node. Nothing here touches the system but the input it is given.
"""
