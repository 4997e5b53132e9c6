"""The meshes the agent can join: one small module each, which fills in :class:`controller.mesh.Mesh`. All of it is pure."""
